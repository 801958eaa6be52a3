"""containerd goes away and comes back; containers do not notice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support import oracle
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX, busybox_rootfs
from tests.support.leaks import TEST_PREFIX
from tests.support.tasks import Tasks
from tests.support.waiting import eventually

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]


def detached(containerd: PrivateContainerd, *command: str) -> str:
    container_id = unique_id(TEST_PREFIX)
    containerd.ctr("run", "--detach", "--runtime", RUNTIME, BUSYBOX, container_id, *command)
    return container_id


def status(containerd: PrivateContainerd, container_id: str) -> str:
    listing = containerd.ctr("tasks", "ls").stdout
    return next((line.split()[2] for line in listing.splitlines() if line.startswith(container_id)), "none")


def ended(containerd: PrivateContainerd, container_id: str, *also: str) -> None:
    wanted = ("STOPPED", *also)
    eventually(lambda: status(containerd, container_id), "the task's end", lambda seen: seen in wanted)


def test_a_container_survives_restarts_of_containerd(containerd: PrivateContainerd) -> None:
    """Pitfall: the event connection is dead after a restart; exec and start must neither fail nor hang for it."""
    container_id = detached(containerd, "sh", "-c", "trap 'exit 12' TERM; while true; do sleep 0.1; done")
    shims = containerd.shims()
    for number, exec_id in ((signal.SIGTERM, "e1"), (signal.SIGKILL, "e2")):
        containerd.restart(number)
        assert status(containerd, container_id) == "RUNNING"
        done = containerd.ctr(
            "tasks", "exec", "--exec-id", exec_id, container_id, "sh", "-c", "echo here; exit 3", check=False
        )
        assert (done.returncode, done.stdout) == (3, "here\n")
    assert containerd.shims() == shims, "it is the same shim all the time"
    containerd.ctr("tasks", "kill", "--signal", "TERM", container_id)
    ended(containerd, container_id)
    assert "non-zero exit code 12" in containerd.ctr("tasks", "delete", container_id).stderr
    containerd.ctr("containers", "delete", container_id)


@pytest.mark.parametrize("runtime", [RUNTIME, oracle.RUNC], ids=["kata", "runc"])
def test_a_task_that_was_not_started_when_containerd_died(
    containerd: PrivateContainerd, runtime: str, tmp_path: Path
) -> None:
    busybox_rootfs(tmp_path / "rootfs")
    container_id = unique_id(TEST_PREFIX)
    containerd.ctr(
        *("container", "create", "--runtime", runtime, "--rootfs", str(tmp_path / "rootfs"), container_id),
        *("/bin/sleep", "600"),
    )
    out, err = tmp_path / "out", tmp_path / "err"
    for fifo in (out, err):
        os.mkfifo(fifo)
    readers = [os.open(fifo, os.O_RDONLY | os.O_NONBLOCK) for fifo in (out, err)]
    with Tasks(containerd.address, containerd.namespace) as tasks:
        tasks.create(container_id, out, err)
    containerd.restart(signal.SIGKILL)
    for fd in readers:
        os.close(fd)
    assert status(containerd, container_id) == "CREATED"
    containerd.ctr("tasks", "delete", "--force", container_id)
    containerd.ctr("containers", "delete", container_id)
    eventually(containerd.shims, "the shim ends", lambda shims: container_id not in shims.values())


def test_an_exit_while_containerd_is_away(containerd: PrivateContainerd) -> None:
    container_id = detached(containerd, "sh", "-c", "sleep 1; touch /last-words; exit 17")
    containerd.stop(signal.SIGKILL)
    upper = "root/io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs/last-words"
    eventually(lambda: list(containerd.directory.glob(upper)), "the container's last words")
    containerd.start()
    ended(containerd, container_id)
    assert "non-zero exit code 17" in containerd.ctr("tasks", "delete", container_id).stderr
    containerd.ctr("containers", "delete", container_id)


def test_a_shim_that_died_while_containerd_was_away(containerd: PrivateContainerd) -> None:
    container_id = detached(containerd, "sleep", "600")
    containerd.stop()
    containerd.kill_sandbox(container_id, shim=True, vm=True)
    containerd.start()
    # containerd finds nobody at the address, runs `delete` and forgets the task.
    ended(containerd, container_id, "none")
    containerd.ctr("tasks", "delete", "--force", container_id, check=False)
    containerd.ctr("containers", "delete", container_id)
