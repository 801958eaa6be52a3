"""Streams that are slow, stuck or large, next to others in the same virtual machine."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX, busybox
from tests.support.leaks import TEST_PREFIX

pytestmark = pytest.mark.containerd

#: Copies of busybox, which is in the image: more than all pipes and buffers on the way hold together.
COPIES = 20
WRITE = f"i=0; while [ $i -lt {COPIES} ]; do cat /bin/busybox; i=$((i+1)); done"
#: Far more than an exec takes in an emulated guest, and far less than for ever.
PATIENCE_S = 30.0


def written() -> bytes:
    return busybox() * COPIES


@pytest.fixture(scope="module")
def task(containerd: PrivateContainerd) -> Iterator[str]:
    task = unique_id(TEST_PREFIX)
    containerd.ctr("run", "--detach", "--runtime", RUNTIME, BUSYBOX, task, "sleep", "3600")
    yield task
    containerd.ctr("tasks", "delete", "--force", task)
    containerd.ctr("containers", "delete", task)


@pytest.fixture
def stuck(containerd: PrivateContainerd, task: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes more than anybody reads."""
    command = containerd.ctr_command("tasks", "exec", "--exec-id", unique_id("stuck"), task, "sh", "-c", WRITE)
    with subprocess.Popen(command, env=containerd.environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as ctr:
        assert ctr.stdout is not None
        try:
            assert ctr.stdout.read(2) == b"\x7fE"
            time.sleep(1)  # until all that is on the way is full
            yield ctr
        finally:
            ctr.kill()


def test_a_reader_that_stops_holds_up_nobody_else(
    containerd: PrivateContainerd, task: str, stuck: subprocess.Popen[bytes]
) -> None:
    for number in range(3):
        begin = time.monotonic()
        done = containerd.ctr("tasks", "exec", "--exec-id", f"quick{number}", task, "seq", "3", timeout=PATIENCE_S)
        assert done.stdout == "1\n2\n3\n"
        assert time.monotonic() - begin < PATIENCE_S
    assert stuck.poll() is None


def test_a_reader_that_stopped_finds_everything(stuck: subprocess.Popen[bytes]) -> None:
    assert stuck.stdout is not None
    assert hashlib.sha256(b"\x7fE" + stuck.stdout.read()).digest() == hashlib.sha256(written()).digest()
    assert stuck.wait(PATIENCE_S) == 0


def test_input_that_nobody_reads_holds_up_nobody_else(containerd: PrivateContainerd, task: str, tmp_path: Path) -> None:
    data = written()
    (tmp_path / "input").write_bytes(data)
    command = containerd.ctr_command("tasks", "exec", "--exec-id", "deaf", task, "sh", "-c", "echo up; sleep 4; cat")
    with (
        (tmp_path / "input").open("rb") as source,
        subprocess.Popen(command, env=containerd.environment, stdin=source, stdout=subprocess.PIPE) as ctr,
    ):
        try:
            assert ctr.stdout is not None
            assert ctr.stdout.read(3) == b"up\n"
            begin = time.monotonic()
            containerd.ctr("tasks", "exec", "--exec-id", "beside", task, "true", timeout=PATIENCE_S)
            assert time.monotonic() - begin < 4
            assert hashlib.sha256(ctr.stdout.read()).digest() == hashlib.sha256(data).digest()
        finally:
            ctr.kill()
