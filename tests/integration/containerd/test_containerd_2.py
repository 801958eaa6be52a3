"""containerd 2.1 as in Debian's next release, beside the installed 1.x: it writes newer specs and speaks version 3."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import oracle
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX, busybox_archive, busybox_rootfs
from tests.support.leaks import TEST_PREFIX
from tests.support.tasks import Tasks
from tests.support.waiting import eventually

pytestmark = [pytest.mark.containerd, pytest.mark.root]

#: runc says what is right.
RUNTIMES = (oracle.RUNC, RUNTIME)


@pytest.fixture(scope="module")
def containerd(
    containerd_2_programs: Path, configuration: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrivateContainerd]:
    archive = busybox_archive(tmp_path_factory.mktemp("image") / "busybox.tar")
    environment = {"KATA_CONF_FILE": str(configuration)}
    with PrivateContainerd(environment=environment, debug=True, programs=containerd_2_programs) as containerd:
        assert containerd.import_image(archive) == [BUSYBOX]
        yield containerd


@contextmanager
def running(containerd: PrivateContainerd, runtime: str) -> Iterator[str]:
    container_id = unique_id(TEST_PREFIX)
    containerd.ctr("run", "--detach", "--runtime", runtime, BUSYBOX, container_id, "sleep", "600")
    try:
        yield container_id
    finally:
        containerd.ctr("task", "delete", "--force", container_id)
        containerd.ctr("container", "delete", container_id)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_run(containerd: PrivateContainerd, runtime: str) -> None:
    container_id = unique_id(TEST_PREFIX)
    command = ("run", "--rm", "--runtime", runtime, BUSYBOX, container_id, "sh", "-c", "echo out; echo err >&2; exit 7")
    done = oracle.answer(
        runtime, lambda: containerd.ctr(*command, check=False), lambda done: done.stdout and done.stderr
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    if runtime == RUNTIME:
        (line,) = [line for line in containerd.log_text().splitlines() if f"connecting to shim {container_id}" in line]
        assert "version=3" in line, "of the Task service"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_exec_beside_a_newer_spec(containerd: PrivateContainerd, runtime: str) -> None:
    with running(containerd, runtime) as container_id:
        written = json.loads((containerd.bundle_root / container_id / "config.json").read_text())["ociVersion"]
        assert "1.0" not in written, "an older crun would not take it"
        command = ("task", "exec", "--exec-id", "e", container_id, "sh", "-c", "echo $((6 * 7)); exit 3")
        done = oracle.answer(runtime, lambda: containerd.ctr(*command, check=False), lambda done: done.stdout)
        assert (done.returncode, done.stdout) == (3, "42\n")


@contextmanager
def reader(path: Path) -> Iterator[select.poll]:
    """Open a new FIFO for reading; POLLHUP tells that a writer has come and gone (poll(2))."""
    os.mkfifo(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    poll = select.poll()
    poll.register(fd, select.POLLHUP)
    try:
        yield poll
    finally:
        os.close(fd)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_task_that_is_killed_before_it_was_started(
    containerd: PrivateContainerd, runtime: str, tmp_path: Path
) -> None:
    """Clients, and so Docker, delete it when its streams have ended: they waited for ever."""
    busybox_rootfs(tmp_path / "rootfs")
    container_id = unique_id(TEST_PREFIX)
    containerd.ctr(
        *("container", "create", "--runtime", runtime, "--rootfs", str(tmp_path / "rootfs"), container_id),
        *("/bin/sleep", "600"),
    )
    out, err = tmp_path / "out", tmp_path / "err"
    with reader(out) as of_out, reader(err) as of_err, Tasks(containerd.address, containerd.namespace) as tasks:
        tasks.create(container_id, out, err)
        try:
            tasks.kill(container_id, signal.SIGKILL)
            eventually(lambda: of_out.poll(0) and of_err.poll(0), "the end of its streams")
            assert tasks.wait(container_id) == 128 + signal.SIGKILL
        finally:
            tasks.delete(container_id)
    containerd.ctr("container", "delete", container_id)


def test_its_restart_finds_the_shims_again(containerd: PrivateContainerd) -> None:
    with running(containerd, RUNTIME) as container_id:
        containerd.restart()
        done = containerd.ctr("task", "exec", "--exec-id", "e", container_id, "echo", "still here")
        assert done.stdout == "still here\n"
