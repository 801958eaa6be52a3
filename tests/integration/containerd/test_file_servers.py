"""The servers of the shared tree: nothing that a container does with files ends them, and their end is a clear one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kata.runtime.hypervisor.qemu.share import find_helper
from kata.runtime.ledger.processes import processes_of
from tests.support import fileissues, filestress
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX
from tests.support.leaks import TEST_PREFIX
from tests.support.packages import python_archive
from tests.support.waiting import eventually

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this"), pytest.mark.timeout(240)]

PYTHON = "docker.io/library/python:test"
CONFIGURATION = """\
[hypervisor.qemu]
default_memory = 512
shared_fs = "{shared_fs}"
"""
#: Linux's 9p looks a name up and then creates it: another one may have done so meanwhile.
EXPECTED = {"virtio-9p": {"ENOENT for a name that another creates"}, "virtio-fs": set[str]()}
#: What differs from a host's file system; see docs/limitations.md.
NOT_SO: dict[str, dict[str, str]] = {
    "": {},
    "virtio-9p": {
        "a file that is unlinked and open: size, mode, owner, times, attributes": "No such file or directory",
        "a file that is unlinked and open: opened again through /proc": "No such file or directory",
        "a file that was replaced, by its descriptor": "is not so",
        "fallocate: without size, zeroed, punched; holes found": "Operation not supported",
        "renameat2: without replacing": "Invalid argument",
        "renameat2: exchanging": "Invalid argument",
        "a file without a name (O_TMPFILE), then with one": "Operation not supported",
        "inotify: changes in a directory that nobody else holds open": "is not so",
        "access control list: whom it names, and nobody else": "Operation not supported",
        "access control list: inherited": "Operation not supported",
        "300 directories in each other": "File name too long",
    },
    "virtio-fs": {
        "a file without a name (O_TMPFILE), then with one": "Operation not supported",
    },
}
OVER_BOTH = pytest.mark.parametrize("shared_fs", ["virtio-9p", "virtio-fs"])
ROUNDS = pytest.mark.parametrize(
    "rounds", [30, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(1200)])]
)


@pytest.fixture(scope="module")
def image(containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory) -> str:
    containerd.import_image(python_archive(tmp_path_factory.mktemp("python") / "python.tar", PYTHON))
    return PYTHON


@pytest.fixture
def options(shared_fs: str, tmp_path: Path) -> tuple[str, ...]:
    configuration = tmp_path / "configuration.toml"
    configuration.write_text(CONFIGURATION.format(shared_fs=shared_fs))
    return "--runtime", RUNTIME, "--runtime-config-path", str(configuration)


@OVER_BOTH
@ROUNDS
@pytest.mark.parametrize("place", ["root", "volume"])
def test_no_file_ends_a_server(
    containerd: PrivateContainerd,
    image: str,
    options: tuple[str, ...],
    shared_fs: str,
    place: str,
    rounds: int,
    tmp_path: Path,
) -> None:
    (tmp_path / "volume").mkdir()
    mounts = (
        *("--mount", f"type=bind,src={filestress.__file__},dst=/filestress.py,options=rbind:ro"),
        *("--mount", f"type=bind,src={tmp_path}/volume,dst=/volume,options=rbind:rw"),
    )
    where = "/volume/stress" if place == "volume" else "/srv/stress"
    container_id = unique_id(TEST_PREFIX)
    command = (image, container_id, "/usr/bin/python3", "/filestress.py", where, str(rounds))
    done = containerd.ctr("run", "--rm", *options, *mounts, *command, timeout=180 + rounds)
    assert set(json.loads(done.stdout)) <= EXPECTED[shared_fs]
    warned = f"container {container_id}: may write to /volume over 9p" in containerd.log_text()
    assert warned == (shared_fs == "virtio-9p")


@pytest.mark.parametrize("place", ["root", "volume"])
@pytest.mark.parametrize("shared_fs", ["", "virtio-9p", "virtio-fs"], ids=["runc", "virtio-9p", "virtio-fs"])
def test_what_programs_have_met(
    containerd: PrivateContainerd, image: str, options: tuple[str, ...], shared_fs: str, place: str, tmp_path: Path
) -> None:
    if not shared_fs:
        options = ("--runtime", "io.containerd.runc.v2")
    (tmp_path / "volume").mkdir()
    mounts = (
        *("--mount", f"type=bind,src={fileissues.__file__},dst=/fileissues.py,options=rbind:ro"),
        *("--mount", f"type=bind,src={tmp_path}/volume,dst=/volume,options=rbind:rw"),
    )
    where = "/volume/issues" if place == "volume" else "/srv/issues"
    command = (image, unique_id(TEST_PREFIX), "/usr/bin/python3", "/fileissues.py", where)
    found = json.loads(containerd.ctr("run", "--rm", *options, *mounts, *command, timeout=180).stdout)
    not_so = {name: said for name, said in found.items() if said is not True}
    assert not_so == NOT_SO[shared_fs], json.dumps(not_so, indent=1)


@OVER_BOTH
def test_the_end_of_the_server_is_the_end_of_the_sandbox(
    containerd: PrivateContainerd, options: tuple[str, ...], shared_fs: str
) -> None:
    """It is killed while a container writes: everything ends at once, and the log says why."""
    if shared_fs == "virtio-9p" and not find_helper():
        pytest.skip("needs a 9p server of its own (QEMU 7.2)")
    container_id = unique_id(TEST_PREFIX)
    busy = "while :; do dd if=/dev/zero of=/file bs=64k count=16 2>/dev/null; echo written; done"
    running = subprocess.Popen(
        containerd.ctr_command("run", "--rm", *options, BUSYBOX, container_id, "sh", "-c", busy),
        env=containerd.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == b"written\n"
        state = containerd.state(container_id)
        os.kill(server_of(state), signal.SIGKILL)
        killed = time.monotonic()
        running.communicate(timeout=60)
        assert time.monotonic() - killed < 20
        assert running.returncode == 137
        said = f"the server of the shared tree of {container_id} was killed by signal 9, so its VM is ended"
        eventually(lambda: said in containerd.log_text(), "the reason is in the log")
        eventually(lambda: list(processes_of(str(state))), "the sandbox's processes have ended", lambda seen: not seen)
    finally:
        running.kill()
        running.communicate()
        containerd.ctr("tasks", "delete", "--force", container_id, check=False)
        containerd.ctr("containers", "delete", container_id, check=False)


def server_of(state: Path) -> int:
    """The process that serves a sandbox's shared tree."""

    def is_server(pid: int) -> bool:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b"virtiofsd" in command or command[0].endswith(b"/virtfs-proxy-helper")

    (server,) = filter(is_server, processes_of(str(state)))
    return server
