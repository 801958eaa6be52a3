"""Streams that are slow, stuck or large, next to others in the same virtual machine."""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from kata.runtime.sandbox.process import STUCK_CONSUMER_S
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX, busybox
from tests.support.leaks import TEST_PREFIX
from tests.support.waiting import eventually

pytestmark = pytest.mark.containerd

#: Copies of busybox, which is in the image: more than all pipes and buffers on the way hold together.
COPIES = 20
DEAF = "echo up; until [ -e /tmp/hear ]; do sleep 0.1; done; cat"
WRITE = f"i=0; while [ $i -lt {COPIES} ]; do cat /bin/busybox; i=$((i+1)); done"
#: Bytes in a pipe that is as good as full: its pages need not be.
PIPE = 60 << 10
#: Far more than an exec takes in an emulated guest, and far less than for ever.
PATIENCE_S = 60.0


def written() -> bytes:
    return busybox() * COPIES


@pytest.fixture(scope="module")
def task(containerd: PrivateContainerd) -> Iterator[str]:
    task = unique_id(TEST_PREFIX)
    containerd.ctr("run", "--detach", "--runtime", RUNTIME, BUSYBOX, task, "sleep", "3600")
    yield task
    containerd.ctr("tasks", "delete", "--force", task)
    containerd.ctr("containers", "delete", task)


def waiting_in(pipe: IO[bytes] | None) -> int:
    """Bytes that can be read from a pipe."""
    assert pipe is not None
    (size,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(size)


@pytest.fixture
def stuck(containerd: PrivateContainerd, task: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes more than anybody reads."""
    command = containerd.ctr_command("tasks", "exec", "--exec-id", unique_id("stuck"), task, "sh", "-c", WRITE)
    with subprocess.Popen(command, env=containerd.environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as ctr:
        assert ctr.stdout is not None
        try:
            assert os.read(ctr.stdout.fileno(), 2) == b"\x7fE"
            eventually(lambda: waiting_in(ctr.stdout), "a full pipe", lambda size: size > PIPE)
            yield ctr
        finally:
            ctr.kill()


def test_a_reader_that_stops_holds_up_nobody_else(
    containerd: PrivateContainerd, task: str, stuck: subprocess.Popen[bytes]
) -> None:
    for number in range(3):
        done = containerd.ctr("tasks", "exec", "--exec-id", f"quick{number}", task, "seq", "3", timeout=PATIENCE_S)
        assert done.stdout == "1\n2\n3\n"
    assert stuck.poll() is None


def test_a_reader_that_stopped_finds_everything(stuck: subprocess.Popen[bytes]) -> None:
    assert stuck.stdout is not None
    assert hashlib.sha256(b"\x7fE" + stuck.stdout.read()).digest() == hashlib.sha256(written()).digest()
    assert stuck.wait(PATIENCE_S) == 0


def test_input_that_nobody_reads_holds_up_nobody_else(containerd: PrivateContainerd, task: str, tmp_path: Path) -> None:
    data = written()
    (tmp_path / "input").write_bytes(data)
    command = containerd.ctr_command("tasks", "exec", "--exec-id", "deaf", task, "sh", "-c", DEAF)
    with (
        (tmp_path / "input").open("rb") as source,
        subprocess.Popen(command, env=containerd.environment, stdin=source, stdout=subprocess.PIPE) as ctr,
    ):
        try:
            assert ctr.stdout is not None
            assert ctr.stdout.read(3) == b"up\n"
            containerd.ctr("tasks", "exec", "--exec-id", "beside", task, "touch", "/tmp/hear", timeout=PATIENCE_S)
            assert hashlib.sha256(ctr.stdout.read()).digest() == hashlib.sha256(data).digest()
        finally:
            ctr.kill()


def test_a_reader_that_pauses_after_the_end_finds_everything(containerd: PrivateContainerd, task: str) -> None:
    """Pitfall: containerd 1.6's clients leave when they hear of the exit."""
    size = 2_000_000
    command = containerd.ctr_command(
        "tasks", "exec", "--exec-id", unique_id("pause"), task, "head", "-c", str(size), "/dev/zero"
    )
    with subprocess.Popen(command, env=containerd.environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as ctr:
        assert ctr.stdout is not None
        eventually(lambda: waiting_in(ctr.stdout), "a full pipe", lambda waiting: waiting > PIPE)
        # Longer than an exit is held back for a reader of what was killed.
        time.sleep(STUCK_CONSUMER_S + 1)
        assert len(ctr.stdout.read()) == size
        assert ctr.wait(PATIENCE_S) == 0


def test_a_child_goes_on_writing_when_its_parent_has_ended(containerd: PrivateContainerd, task: str) -> None:
    late = "(sleep 1; echo late) & echo now"
    done = containerd.ctr("tasks", "exec", "--exec-id", unique_id("late"), task, "sh", "-c", late, timeout=PATIENCE_S)
    assert done.stdout == "now\nlate\n"
