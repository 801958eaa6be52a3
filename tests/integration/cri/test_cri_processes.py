"""What runs in a pod, and how it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from kata.protocols import cri_pb2 as pb
from tests.support.cri import Cri, Pod
from tests.support.waiting import eventually

#: What runtimes say of a program that is not there.
CGROUPS = Path("/sys/fs/cgroup")
NOT_THERE = ("no such file or directory", "executable file not found")


def test_env(pod: Pod) -> None:
    said = pod.output("sh", "-c", "echo $NAME:$EMPTY:$SPACES", env={"NAME": "value", "EMPTY": "", "SPACES": "a  b"})
    assert said == "value::a b\n"


def test_exec(pod: Pod) -> None:
    container = pod.run()
    done = container.exec("sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.stdout, done.stderr, done.status) == ("out\n", "err\n", 3)
    container.remove()


def test_exec_of_what_is_not_there(pod: Pod) -> None:
    container = pod.run()
    with pytest.raises(grpc.RpcError) as caught:
        container.exec("/no/such/program")
    assert any(said in str(caught.value).lower() for said in NOT_THERE)
    container.remove()


def test_exec_with_a_deadline(pod: Pod) -> None:
    container = pod.run()
    with pytest.raises(grpc.RpcError) as caught:
        container.exec("sleep", "60", timeout=1)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert container.sh("echo still here") == "still here\n"
    container.remove()


def test_liveness_like_probes(pod: Pod) -> None:
    """A file that is there, then is not."""
    container = pod.run("sh", "-c", "touch /tmp/healthy; exec sleep 1000")
    # The first probes may come too early, as a kubelet's may.
    eventually(lambda: container.exec("cat", "/tmp/healthy").status, "the file", lambda status: status == 0)
    for _ in range(3):
        assert container.exec("cat", "/tmp/healthy").status == 0
    container.sh("rm /tmp/healthy")
    assert container.exec("cat", "/tmp/healthy").status == 1
    container.remove()


@pytest.mark.parametrize("code", [0, 1, 42, 127])
def test_exit_codes(pod: Pod, code: int) -> None:
    container = pod.run("sh", "-c", f"exit {code}")
    status = container.wait()
    assert (status.exit_code, status.reason) == (code, "Error" if code else "Completed")
    # When it ended is not compared: containerd takes the time of a start after it, which a quick container precedes.
    assert 0 < status.created_at <= status.started_at
    assert status.created_at <= status.finished_at
    container.remove()


def test_attach(pod: Pod) -> None:
    """Input, output and errors of a container that runs, one client after the other; what came before is logged."""
    script = "echo before; while read line; do echo out $line; echo err $line >&2; done"
    container = pod.run("sh", "-c", script, stdin=True)
    container.wait_log("before")
    for word in (b"first", b"second"):
        with container.attach() as streams:
            streams.send(word + b"\n")
            out, err = b"out " + word + b"\n", b"err " + word + b"\n"
            assert streams.receive(len(out) + len(err)) == (out, err)
    container.stop()
    assert container.log().startswith("before\n")
    container.remove()


def test_job(pod: Pod) -> None:
    """Runs to its end; its log stays until it is removed."""
    status, log = pod.ended("sh", "-c", "for i in 1 2 3; do echo step $i; done; printf done")
    assert (status.exit_code, log) == (0, "step 1\nstep 2\nstep 3\ndone")


def test_logs_are_complete(pod: Pod) -> None:
    lines = 20000
    container = pod.run("sh", "-c", f"seq {lines}; seq {lines} >&2; sleep 1")
    # Not at once: containerd 1.6 can cut off the log of a runc container that ends with much to say.
    container.wait()
    assert sorted(container.log().split(), key=int) == sorted([str(one) for one in range(1, lines + 1)] * 2, key=int)
    container.remove()


def test_graceful_termination(pod: Pod) -> None:
    container = pod.run("sh", "-c", "trap 'echo asked; exit 5' TERM; echo up; while :; do sleep 0.1; done")
    container.wait_log("up")
    container.stop(timeout=60)
    status = container.status
    assert (status.exit_code, container.log()) == (5, "up\nasked\n")
    container.remove()


def test_termination_by_force(pod: Pod) -> None:
    container = pod.run("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done")
    container.wait_log("up")
    container.stop(timeout=1)
    assert container.status.exit_code == 137
    container.remove()


def test_kill_all_processes(pod: Pod) -> None:
    """With a container's first process all others end."""
    container = pod.run("sh", "-c", "sleep 1001 & sleep 1002 & echo up; wait")
    container.wait_log("up")
    container.stop()
    container.remove()
    other = pod.run()
    assert "sleep 100" not in other.sh("ps -o args | grep 'sleep 100[12]' | grep -v grep || true")
    other.remove()


def test_restart_in_a_living_pod(pod: Pod) -> None:
    for attempt in range(3):
        status, log = pod.ended("sh", "-c", f"echo attempt {attempt}; exit 1")
        assert (status.exit_code, log) == (1, f"attempt {attempt}\n")


def test_a_container_that_was_never_started(pod: Pod) -> None:
    container = pod.create()
    assert container.status.state == pb.CONTAINER_CREATED
    container.remove()


def test_a_command_that_is_not_there(pod: Pod) -> None:
    container = pod.create("/no/such/program")
    with pytest.raises(grpc.RpcError) as caught:
        container.start()
    assert any(said in str(caught.value).lower() for said in NOT_THERE)
    container.remove()


def test_parallel(cri: Cri) -> None:
    """Several containers at once in one pod."""
    with cri.pod("parallel") as pod:
        containers = [pod.create("sh", "-c", f"echo {number}; sleep 1000") for number in range(4)]
        for container in containers:
            container.start()
        assert [container.sh("echo alive") for container in containers] == ["alive\n"] * 4
        containers[0].remove()
        assert [container.sh("echo alive") for container in containers[1:]] == ["alive\n"] * 3


def test_removing_a_running_pod(cri: Cri) -> None:
    """By force, with containers in every state."""
    with cri.pod("forced") as pod:
        pod.run()
        pod.create()
        pod.run("true").wait()
    with pytest.raises(grpc.RpcError):
        cri.call("PodSandboxStatus", pod_sandbox_id=pod.id)


def has_run(stats: Any) -> bool:
    return bool(stats.cpu.usage_core_nano_seconds.value > 50_000_000)


def test_stats(pod: Pod) -> None:
    container = pod.run("sh", "-c", "while :; do :; done")
    stats = eventually(container.stats, "it has run", has_run)
    assert 0 < stats.memory.working_set_bytes.value < 1 << 30
    container.remove()


@pytest.fixture
def parent(cri: Cri) -> Iterator[str]:
    """A control group that kubelet would make for a pod, removed afterwards."""
    name = f"kata-test-{cri.handler}-{os.getpid()}"
    yield f"/{name}"
    for hierarchy in CGROUPS.iterdir():
        if (group := hierarchy / name).is_dir():
            group.rmdir()


def test_stats_of_a_pod(cri: Cri, parent: str) -> None:
    """Those of the pod's control group on the host: with Kata all of the virtual machine."""
    with cri.pod("pod-stats", linux=pb.LinuxPodSandboxConfig(cgroup_parent=parent)) as pod:
        container = pod.run("sh", "-c", "while :; do :; done")
        stats = eventually(
            lambda: cri.call("PodSandboxStats", pod_sandbox_id=pod.id).stats.linux, "it has run", has_run
        )
        of_container = container.stats()
        assert stats.memory.working_set_bytes.value >= of_container.memory.working_set_bytes.value
        listed = cri.call("ListContainerStats").stats
        assert container.id in [one.attributes.id for one in listed]
        container.remove()
