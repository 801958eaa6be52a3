"""The trace of a container's start, of an exec in it and of its stop: host and guest in one tree, times in order."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.containerd.conftest import CONFIGURATION
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX, busybox_archive, busybox_rootfs
from tests.support.leaks import TEST_PREFIX
from tests.support.otlp import Collector, grpc_collector, tree
from tests.support.waiting import eventually

pytestmark = pytest.mark.containerd

KATA, FORWARDER = (str(Path(sys.executable).with_name(name)) for name in ("kata", "kata-trace-forwarder"))
TASK, AGENT = "containerd.task.v2.Task", "grpc.AgentService"
#: Of containerd's CRI plugin.
POD_NAME = "io.kubernetes.cri.sandbox-name"
#: Two clocks of one host, read one after the other.
SLACK_NS = 1_000_000

Span = dict[str, Any]


class Forwarder:
    """A trace forwarder that exports to a collector."""

    def __init__(self, path: Path, collector: Collector) -> None:
        self.socket = Path(f"{path}_10240")
        self.collector = collector
        self._command = [FORWARDER, f"--socket-path={path}", f"--otlp-endpoint=http://127.0.0.1:{collector.port}"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command)
        eventually(lambda: os.path.exists(self.socket), "the forwarder listens")

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait(20)
        self.socket.unlink(missing_ok=True)

    def trace(self, root: str, *names: str) -> list[Span]:
        """The trace whose first span is `root`, once it has spans of these names."""

        def look() -> list[Span]:
            spans = self.collector.spans
            first = next((span for span in spans if span["name"] == root and not span["parent"]), None)
            return [span for span in spans if first and span["trace"] == first["trace"]]

        return eventually(
            look, f"the trace {root} with {names}", lambda spans: {*names} <= {span["name"] for span in spans}
        )


@pytest.fixture(scope="module")
def forwarder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forwarder]:
    with grpc_collector() as collector:
        forwarder = Forwarder(tmp_path_factory.mktemp("forwarder") / "f", collector)
        forwarder.start()
        yield forwarder
        forwarder.kill()


@pytest.fixture(scope="module")
def tracing(forwarder: Forwarder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with tracing."""
    configuration = tmp_path_factory.mktemp("traced") / "configuration.toml"
    path = str(forwarder.socket).removesuffix("_10240")
    configuration.write_text(
        f"{CONFIGURATION}\n[agent.kata]\nenable_tracing = true\n"
        f'[runtime]\nenable_tracing = true\ntrace_forwarder_socket = "{path}"\n'
    )
    return configuration


@pytest.fixture(scope="module")
def traced(containerd: PrivateContainerd, tracing: Path) -> Iterator[str]:
    """The id of a running container that is traced."""
    name = unique_id(TEST_PREFIX)
    chosen = ("--runtime", RUNTIME, "--runtime-config-path", str(tracing), "--annotation", f"{POD_NAME}=a-pod")
    containerd.ctr("run", "--detach", *chosen, BUSYBOX, name, "sleep", "3600", timeout=180)
    yield name
    containerd.ctr("tasks", "delete", "--force", name, check=False)
    containerd.ctr("containers", "delete", name, check=False)


def check(
    spans: list[Span], container: str, namespace: str | None = "default", pod: str | None = "a-pod"
) -> dict[str, Span]:
    """Each span has its parent and lies within it, and says whose it is; returns them by name."""
    sys.stderr.write("\n".join(tree(spans)) + "\n")
    known = {span["id"]: span for span in spans}
    assert len(known) == len(spans)
    assert [span["name"] for span in spans if not span["parent"]] == [min(spans, key=lambda s: s["start"])["name"]]
    for span in spans:
        assert span["resource"]["kata.sandbox.id"] == container
        assert span["resource"].get("containerd.namespace") == namespace
        assert span["resource"].get("k8s.pod.name") == pod
        if span["parent"]:
            parent = known[span["parent"]]
            assert parent["start"] - SLACK_NS <= span["start"] <= span["end"] <= parent["end"] + SLACK_NS, (
                f"{span['name']} lies within {parent['name']}"
            )
    return {f"{span['name']}{' of the guest' if _is_guests(span) else ''}": span for span in spans}


def _listed(containerd: PrivateContainerd, name: str) -> str:
    """The line of a task; "" without one."""
    return next((line for line in containerd.ctr("tasks", "ls").stdout.splitlines() if line.startswith(name)), "")


def _is_guests(span: Span) -> bool:
    return bool(span["resource"]["service.name"] == "kata-agent")


def test_a_start_is_one_tree(forwarder: Forwarder, traced: str) -> None:
    spans = forwarder.trace("start", f"{TASK}/Start", f"{AGENT}/StartContainer", "crun create", "crun start")
    found = check(spans, traced)
    assert found[f"{TASK}/Create"]["parent"] == found[f"{TASK}/Start"]["parent"] == found["start"]["id"]
    assert found["qemu"]["parent"] == found["sandbox"]["parent"] == found[f"{TASK}/Create"]["id"]
    for rpc, phase in (("CreateSandbox", "sandbox"), ("CreateContainer", "create"), ("StartContainer", "start")):
        ours, theirs = found[f"{AGENT}/{rpc}"], found[f"{AGENT}/{rpc} of the guest"]
        assert theirs["parent"] == ours["id"]
        assert ours["kind"] == 3
        assert theirs["kind"] == 2
        assert rpc == "StartContainer" or ours["parent"] == found[phase]["id"]
    assert found["crun create of the guest"]["parent"] == found[f"{AGENT}/CreateContainer of the guest"]["id"]
    assert found[f"{AGENT}/CreateContainer of the guest"]["attributes"]["container.id"] == traced
    assert not any(span["failed"] for span in spans)


def test_an_exec_that_fails_says_why_on_both_sides(
    forwarder: Forwarder, traced: str, containerd: PrivateContainerd
) -> None:
    containerd.ctr("tasks", "exec", "--exec-id", "bad", traced, "/no/such/program", check=False)
    spans = forwarder.trace("exec", f"{TASK}/Start", "crun exec")
    found = check(spans, traced)
    failed = [f"{AGENT}/ExecProcess", f"{AGENT}/ExecProcess of the guest", f"{TASK}/Start", "exec"]
    for name in failed:
        assert found[name]["failed"], name
        assert "/no/such/program" in found[name]["message"]
    assert found["exec"]["attributes"] == {"container.id": traced, "kata.exec.id": "bad"}
    assert not found[f"{TASK}/Exec"]["failed"]


def test_the_container_does_not_notice_that_the_forwarder_dies(
    forwarder: Forwarder, traced: str, containerd: PrivateContainerd
) -> None:
    forwarder.kill()
    for number in range(3):
        done = containerd.ctr("tasks", "exec", "--exec-id", f"away{number}", traced, "echo", "here")
        assert done.stdout == "here\n"
    before = len(forwarder.collector.spans)
    forwarder.start()
    containerd.ctr("tasks", "exec", "--exec-id", "back", traced, "true")

    def execs() -> set[str]:
        spans = forwarder.collector.spans[before:]
        return {span["attributes"]["kata.exec.id"] for span in spans if span["name"] == "exec"}

    eventually(execs, "what was kept has arrived", lambda names: {"away2", "back"} <= names)


def test_a_stop_is_one_tree_with_the_guests_last_words(
    forwarder: Forwarder, traced: str, containerd: PrivateContainerd
) -> None:
    containerd.ctr("tasks", "kill", "--signal", "KILL", traced)
    eventually(lambda: "STOPPED" in _listed(containerd, traced), "it has ended")
    containerd.ctr("tasks", "delete", traced, check=False)
    assert not _listed(containerd, traced)
    spans = forwarder.trace("stop", f"{TASK}/Delete", "end of the VM", f"{AGENT}/DestroySandbox", "stop")
    found = check(spans, traced)
    assert found[f"{AGENT}/DestroySandbox of the guest"]["parent"] == found[f"{AGENT}/DestroySandbox"]["id"]
    assert found[f"{AGENT}/SignalProcess of the guest"]["attributes"]["container.id"] == traced
    assert found["stop"]["attributes"] == {"container.id": traced}


def test_kata_run_is_one_tree(forwarder: Forwarder, tracing: Path, tmp_path: Path) -> None:
    name = unique_id(TEST_PREFIX)
    busybox_rootfs(tmp_path / "root")
    done = subprocess.run(
        [KATA, "run", "--name", name, "--rootfs", tmp_path / "root", "--", "/no/such/program"],
        env={**os.environ, "KATA_CONF_FILE": str(tracing)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 127
    found = check(
        forwarder.trace("kata run", f"{AGENT}/DestroySandbox", "end of the VM"), name, namespace=None, pod=None
    )
    assert found[f"{AGENT}/CreateContainer"]["failed"]
    assert found[f"{AGENT}/CreateContainer of the guest"]["parent"] == found[f"{AGENT}/CreateContainer"]["id"]
    assert "/no/such/program" in found["create"]["message"]
    assert found["kata run"]["parent"] == ""
    assert not found["kata run"]["failed"], "it has told what went wrong"


def test_a_containerd_that_traces_is_the_parent(
    forwarder: Forwarder, tracing: Path, containerd_2_programs: Path, tmp_path: Path
) -> None:
    """containerd 2 takes its settings from OpenTelemetry's variables, and exports to the same collector."""
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{forwarder.collector.port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_SERVICE_NAME": "containerd",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    with PrivateContainerd(environment=environment, programs=containerd_2_programs) as containerd:
        containerd.import_image(busybox_archive(tmp_path / "busybox.tar"))
        name = unique_id(TEST_PREFIX)
        chosen = ("--runtime", RUNTIME, "--runtime-config-path", str(tracing))
        containerd.ctr("run", "--rm", *chosen, BUSYBOX, name, "true", timeout=180)

        def handed_over() -> dict[str, tuple[str, str]]:
            """Our spans of containerd's calls: whose span each is in, and that one's name."""
            spans = {span["id"]: span for span in forwarder.collector.spans}
            found = {}
            for span in spans.values():
                parent = spans.get(span["parent"])
                if span["resource"].get("kata.sandbox.id") == name and parent and parent["trace"] == span["trace"]:
                    found[span["name"].rpartition("/")[2]] = (parent["resource"]["service.name"], parent["name"])
            return found

        found = eventually(handed_over, "both sides' spans", lambda seen: {"Create", "Start", "Delete"} <= seen.keys())
    assert {call: found[call][0] for call in ("Create", "Start", "Delete")} == dict.fromkeys(
        ("Create", "Start", "Delete"), "containerd"
    )
    assert found["Create"][1].endswith("Task/Create")
