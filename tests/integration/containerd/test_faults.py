"""kill -9 of the VM, of the shim, of both, at any moment: containerd learns of the end, nothing remains."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kata.runtime.ledger.processes import processes_of
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX
from tests.support.leaks import TEST_PREFIX
from tests.support.repeats import repeated
from tests.support.waiting import eventually

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]

VICTIMS = pytest.mark.parametrize(
    ("shim", "vm"), [(False, True), (True, False), (True, True)], ids=["vm", "shim", "both"]
)


@contextmanager
def running(
    containerd: PrivateContainerd, *command: str, output: int = subprocess.PIPE
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A `ctr run --rm` in the foreground; it has to end by itself."""
    container_id = unique_id(TEST_PREFIX)
    process = subprocess.Popen(
        containerd.ctr_command("run", "--rm", "--runtime", RUNTIME, BUSYBOX, container_id, *command),
        env=containerd.environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    try:
        yield container_id, process
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"ctr still waits for {container_id}") from None
    finally:
        process.kill()
        process.communicate()
        containerd.ctr("tasks", "delete", "--force", container_id, check=False)
        containerd.ctr("containers", "delete", container_id, check=False)


def forgotten(containerd: PrivateContainerd, container_id: str) -> None:
    """containerd lists the task no more, and nothing that served it runs."""

    def left() -> list[str]:
        tasks = [line for line in containerd.ctr("tasks", "ls").stdout.splitlines() if container_id in line]
        shims = [f"shim {pid}" for pid, name in containerd.shims().items() if name == container_id]
        return tasks + shims + [f"process {pid}" for pid in processes_of(str(containerd.state(container_id)))]

    eventually(left, "all is forgotten", lambda seen: not seen)


@VICTIMS
def test_while_it_runs(containerd: PrivateContainerd, shim: bool, vm: bool) -> None:
    with running(containerd, "sh", "-c", "echo up; exec sleep 600") as (container_id, process):
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        containerd.kill_sandbox(container_id, shim=shim, vm=vm)
    # Without a shim ctr says "ttrpc: closed" and ends with 1, as it does with runc's.
    assert process.returncode == (1 if shim else 137)
    forgotten(containerd, container_id)


@VICTIMS
@repeated(2, round_s=60)
def test_at_random_moments(containerd: PrivateContainerd, shim: bool, vm: bool, rounds: int) -> None:
    generator = random.Random()
    for _ in range(rounds):
        # From the shim's first steps over the VM's to a container that floods its output.
        moment = generator.uniform(0.02, 2.0)
        try:
            with running(containerd, "sh", "-c", "yes | head -c 3000000; sleep 600", output=subprocess.DEVNULL) as (
                container_id,
                process,
            ):
                time.sleep(moment)
                while process.poll() is None and not containerd.kill_sandbox(container_id, shim=shim, vm=vm):
                    time.sleep(0.02)
            assert process.returncode != 0
            forgotten(containerd, container_id)
        except AssertionError as error:
            raise AssertionError(f"killed after {moment:.2f} s: {error}") from error


def test_the_shim_is_asked_to_end(containerd: PrivateContainerd) -> None:
    """SIGTERM, as a node's shutdown sends it: everything is given back by the shim itself."""
    with running(containerd, "sh", "-c", "echo up; exec sleep 600") as (container_id, process):
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        pid = next(pid for pid, name in containerd.shims().items() if name == container_id)
        os.kill(pid, 15)
    assert process.returncode != 0
    forgotten(containerd, container_id)


def test_execs_of_clients_that_are_gone(containerd: PrivateContainerd) -> None:
    """Nobody holds the other ends of their streams any more: the container's end must not wait for that."""
    container_id = unique_id(TEST_PREFIX)
    containerd.ctr("run", "--detach", "--runtime", RUNTIME, BUSYBOX, container_id, "sleep", "600")
    for exec_id, command in (("reads", "cat"), ("writes", "yes"), ("sleeps", "echo x; sleep 600")):
        with subprocess.Popen(
            containerd.ctr_command("tasks", "exec", "--exec-id", exec_id, container_id, "sh", "-c", command),
            env=containerd.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"x\n")
            process.stdin.flush()
            process.stdout.read(2)
            process.kill()
    assert containerd.ctr("tasks", "exec", "--exec-id", "other", container_id, "true").returncode == 0
    containerd.ctr("tasks", "delete", "--force", container_id)
    containerd.ctr("containers", "delete", container_id)


def test_a_client_that_is_killed_does_not_end_the_container(containerd: PrivateContainerd) -> None:
    """Pitfall: when the reader of an output FIFO goes away, the container must not get SIGPIPE."""
    container_id = unique_id(TEST_PREFIX)
    with subprocess.Popen(
        containerd.ctr_command(
            *("run", "--runtime", RUNTIME, BUSYBOX, container_id),
            *("sh", "-c", "while true; do echo tick; sleep 0.05; done"),
        ),
        env=containerd.environment,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"tick\n"
        process.kill()
    time.sleep(1)
    assert "RUNNING" in containerd.ctr("tasks", "ls").stdout
    assert containerd.ctr("tasks", "exec", "--exec-id", "e", container_id, "true").returncode == 0
    containerd.ctr("tasks", "delete", "--force", container_id, check=False)
    containerd.ctr("containers", "delete", container_id)
