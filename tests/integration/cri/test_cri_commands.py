"""What `kata` tells of a live pod with two containers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.containerd import PrivateContainerd
from tests.support.cri import Container, Cri, Pod
from tests.support.images import BUSYBOX
from tests.support.terminal import on_a_terminal

KATA = str(Path(sys.executable).with_name("kata"))
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Live:
    """A pod, with a container that computes and one that sleeps."""

    pod: Pod
    busy: Container
    idle: Container


@pytest.fixture(scope="module")
def pod(containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    with Cri(containerd.address, "kata", BUSYBOX, tmp_path_factory.mktemp("logs")) as cri:
        with cri.pod("commands") as pod:
            yield pod


@pytest.fixture(scope="module")
def live(pod: Pod) -> Live:
    return Live(pod, pod.run("sh", "-c", "while :; do :; done"), pod.run())


def kata(*arguments: str) -> str:
    done = subprocess.run([KATA, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_list(live: Live) -> None:
    fields = "{{.Engine}} {{.Namespace}} {{.Pod}} {{.State}} {{.Containers}} {{.Accelerator}}"
    (line,) = [line for line in kata("ps", "--format", "{{.Name}} " + fields).splitlines() if live.pod.id in line]
    name, engine, namespace, pod, state, containers, accelerator = line.split()
    assert (name, engine, namespace) == (f"{live.pod.id}@k8s.io", "cri", "k8s.io")
    assert (pod, state, containers) == ("test/commands", "running", "3/3")
    assert accelerator in ("kvm", "tcg")
    table = kata("list")
    assert live.pod.id[:12] in table
    assert live.pod.id not in table
    assert re.search(rf"^{live.pod.id}\S* \d+[sm]$", kata("ps", "--format", "{{.Name}} {{.Age}}"), re.MULTILINE)


def test_containers(live: Live) -> None:
    rows = [line.split() for line in kata("ps", "--containers", "--no-trunc").splitlines()[1:]]
    # Other tests have sandboxes on this host as well.
    assert {(row[0], row[1], row[2], row[3]) for row in rows if live.pod.id in row} == {
        (live.pod.id, "-", "sandbox", "running"),
        (live.busy.id, "c1", "container", "running"),
        (live.idle.id, "c2", "container", "running"),
    }


def test_inspect_by_its_first_digits(live: Live) -> None:
    found = json.loads(kata("inspect", live.pod.id[:6]))
    assert found["id"] == live.pod.id
    assert found["pod"] == {"namespace": "test", "name": "commands", "uid": "commands-uid"}
    assert found["engine_by"] == "annotation io.kubernetes.cri.container-type"
    assert Path(found["vm"]["log_directory"], "console.log").exists()


def test_logs(live: Live) -> None:
    shim = kata("logs", "--component", "shim", live.pod.id)
    assert f"sandbox={live.pod.id}" in shim
    parsed = subprocess.run(
        [KATA, "logs", "parse", "--check-only", "-"], input=shim, capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    assert (parsed.returncode, parsed.stderr) == (0, "")
    together = kata("logs", live.pod.id).splitlines()
    assert live.idle.id in "".join(together)
    assert kata("logs", "-n", "2", live.pod.id).splitlines() == together[-2:]
    for component in ("guest", "agent", "qemu", "virtiofsd"):
        kata("logs", "--component", component, live.pod.id)  # a guest that was restored has nothing to say


def usage(live: Live) -> dict[str, Any]:
    sandboxes = json.loads(kata("stats", "--no-stream", "--json", live.pod.id))
    (found,) = sandboxes
    assert isinstance(found, dict)
    return found


def test_stats(live: Live) -> None:
    found = usage(live)
    assert set(found["containers"]) == {live.pod.id, live.busy.id, live.idle.id}
    busy, idle = found["containers"][live.busy.id], found["containers"][live.idle.id]
    assert busy["cpu_percent"] > 10 > idle["cpu_percent"]
    assert idle["memory_bytes"] > 0
    assert idle["pids"] == 1
    assert found["vm"]["cpu_percent"] > 10
    assert found["vm"]["memory_limit_bytes"] >= 512 << 20
    table = kata("stats", "--no-stream", live.pod.id).splitlines()
    assert sorted(line.split()[1] for line in table[1:]) == sorted(
        ["VM", *(one[:12] for one in (live.pod.id, live.busy.id, live.idle.id))]
    )


def test_top_on_a_terminal(live: Live) -> None:
    name = live.pod.id[:12].encode()
    status, said = on_a_terminal([KATA, "top", "--interval", "0.5"], (name, b"t"), (b"c2", b"q"), size=(30, 140))
    assert status == 0
    assert b"test/commands" in said


def test_events(live: Live) -> None:
    events = [json.loads(line) for line in kata("events", "--json", live.pod.id).splitlines()]
    started = [event["container"] for event in events if event["type"] == "container-started"]
    assert started[:3] == [live.pod.id, live.busy.id, live.idle.id]
    follower = subprocess.Popen(
        [KATA, "events", "--follow", "--json", live.pod.id], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert follower.stdout
        seen = [json.loads(follower.stdout.readline()) for _ in events]
        assert seen == events
        container = live.pod.run("true")
        container.wait()
        container.remove()
        types: list[str] = []
        while "container-deleted" not in types:
            event = json.loads(follower.stdout.readline())
            if event["container"] == container.id:
                types.append(event["type"])
        assert types == ["container-created", "container-started", "container-exited", "container-deleted"]
    finally:
        follower.kill()
        follower.communicate()


def test_timings_and_metrics(live: Live) -> None:
    assert "create" in kata("timings", live.pod.id)
    assert live.busy.id in kata("metrics")


def test_followed_logs(live: Live) -> None:
    follower = subprocess.Popen([KATA, "logs", "--follow", "-n", "1", live.pod.id], stdout=subprocess.PIPE, text=True)
    try:
        assert follower.stdout
        assert follower.stdout.readline()
        container = live.pod.run("true")
        container.wait()
        container.remove()
        line = follower.stdout.readline()
        while container.id not in line:
            line = follower.stdout.readline()
    finally:
        follower.kill()
        follower.communicate()


def test_by_kubernetes_names(live: Live, tmp_path: Path) -> None:
    assert json.loads(kata("inspect", "test/commands"))["id"] == live.pod.id
    assert kata("exec", "test/commands/c2", "--", "cat", "/etc/hostname") == "commands\n"
    assert kata("exec", "-c", live.idle.id[:20], live.pod.id[:12], "--", "echo", "there") == "there\n"
    kata("cp", "test/commands:c2:/etc/hostname", str(tmp_path / "name"))
    assert (tmp_path / "name").read_text() == "commands\n"
    assert live.pod.id in kata("logs", "--component", "shim", "test/commands")
    assert "kata_shim_threads" in kata("metrics", "test/commands")
    kata("pause", "test/commands/c2")
    try:
        assert re.search(r"\bc2 +container +paused\b", kata("ps", "--containers"))
    finally:
        kata("resume", "test/commands", "c2")
    for arguments, status, said in (
        (("exec", "test/commands", "true"), 125, "has several containers\nhint: name one of c1, c2"),
        (("stop", "test/commands/c2"), 1, "test/commands/c2 is a container\nhint: name its sandbox: test/commands"),
    ):
        done = subprocess.run([KATA, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S)
        assert done.returncode == status
        assert said in done.stderr
