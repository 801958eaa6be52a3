"""kata-monitor with a real pod: Kata's labels, Prometheus and its promtool, the dashboard, the page in a browser."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kata.errors import Internal, Unavailable
from kata.metrics.exposition import label_text
from kata.metrics.table import ALL
from kata.protocols import cri_pb2 as pb
from kata.runtime.ledger.processes import processes_of
from tests.support import browser as chromium
from tests.support.containerd import PrivateContainerd
from tests.support.cri import Container, Cri, Pod
from tests.support.images import BUSYBOX
from tests.support.monitor import RunningMonitor, kata_monitor
from tests.support.prometheus import Prometheus, complaints, programs, prometheus
from tests.support.waiting import eventually

DASHBOARD = Path(__file__).parents[3] / "deploy/grafana/kata.json"
#: Whoever makes pods chooses their names; Kubernetes would refuse this one, the runtime does not.
NAME = 'web"<b>1</b><script>alert(1)</script>\\'
#: The rows of the pod: other tests have sandboxes on this host as well.
ROWS = "[...document.querySelectorAll('#list tbody tr')].filter(row => row.textContent.includes('shop/'))"
#: Seconds for a sandbox to answer a scrape: an emulated guest on a busy host takes its time.
TIMEOUT = ("--scrape-timeout", "10")


@pytest.fixture(scope="module")
def kata(containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cri]:
    with Cri(containerd.address, "kata", BUSYBOX, tmp_path_factory.mktemp("logs")) as cri:
        yield cri


@pytest.fixture(scope="module")
def pod(kata: Cri) -> Iterator[Pod]:
    metadata = pb.PodSandboxMetadata(name=NAME, uid="uid-1", namespace="shop")
    with kata.pod("monitored", metadata=metadata) as pod:
        yield pod


@pytest.fixture(scope="module")
def busy(pod: Pod) -> Container:
    """One that works, beside one that sleeps."""
    pod.run()
    return pod.run("sh", "-c", "while :; do wget -q -O /dev/null http://127.0.0.1:1/ 2>/dev/null; i=0; done")


@pytest.fixture(scope="module")
def monitor(busy: Container, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMonitor]:
    with kata_monitor(tmp_path_factory.mktemp("monitor"), *TIMEOUT) as running:
        yield running


@pytest.fixture(scope="module")
def prometheus_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return programs(tmp_path_factory.mktemp("programs"))
    except (Unavailable, Internal) as error:
        pytest.skip(f"needs Prometheus from a Debian mirror: {error}")


def whole(monitor: RunningMonitor, pod: Pod) -> str:
    """The metrics, with those of the guest."""
    owner = re.escape(f'kata_shim_agent_up{{sandbox_id="{pod.id}"')
    return eventually(lambda: monitor.get("/metrics"), "the guest's", lambda seen: re.search(owner + r".* 1\n", seen))


def test_kata_s_labels_and_paths(pod: Pod, monitor: RunningMonitor) -> None:
    # Other tests have sandboxes on this host as well.
    eventually(lambda: monitor.get("/sandboxes").splitlines(), "the sandbox", lambda seen: pod.id in seen)
    labels = label_text({"sandbox_id": pod.id, "cri_uid": "uid-1", "cri_name": NAME, "cri_namespace": "shop"})
    eventually(lambda: monitor.get("/metrics"), "its labels", lambda seen: f"kata_shim_threads{{{labels}}} " in seen)
    text = whole(monitor, pod)
    assert re.search(r"^kata_monitor_running_shim_count [1-9]", text, re.MULTILINE)
    assert f'kata_guest_meminfo{{{labels},item="mem_total"}} ' in text
    names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    # Nothing is served by virtiofsd in this pod.
    assert names >= {name for name in ALL if not name.startswith("kata_virtiofsd_")}
    assert names <= set(ALL)
    assert monitor.get(f"/agent-url?sandbox={pod.id}").startswith("unix:///run/kata/")
    assert "kata_shim_threads " in monitor.get(f"/metrics?sandbox={pod.id}")


def test_prometheus_and_the_dashboard(
    pod: Pod, monitor: RunningMonitor, prometheus_programs: Path, tmp_path: Path
) -> None:
    code, said = complaints(prometheus_programs, whole(monitor, pod))
    # It reads all of it. What it says against names is said of Kata's, and Kata's own text gets the same.
    assert code in (0, 3)
    assert {name for name, _ in said if not ALL[name].kata} == set()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with prometheus(prometheus_programs, tmp_path, monitor.address, interval_s=2, port=port) as server:
        eventually(lambda: server.query(f'kata_guest_load{{sandbox_id="{pod.id}"}}'), "a scrape", poll_s=0.5)
        (up,) = server.query("up")
        assert up["value"][1] == "1"
        (load,) = server.query(f'kata_guest_load{{item="load1", sandbox_id="{pod.id}"}}')
        assert load["metric"]["cri_name"] == NAME
        for expression in expressions():
            eventually(lambda one=expression: server.query(one), expression, poll_s=0.5)  # type: ignore[misc]
        assert types(server) == {name: ALL[name].kind for name in types(server)}


def expressions() -> list[str]:
    """The queries of the dashboard, with what Grafana puts in."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    assert len(found) >= 30
    return [one.replace("$sandbox", ".*").replace("$__rate_interval", "20s") for one in found]


def types(server: Prometheus) -> dict[str, str]:
    metadata = server.ask("metadata")
    return {name: found[0]["type"] for name, found in metadata.items() if name.startswith("kata_")}


@pytest.mark.skipif(chromium.missing() is not None, reason=f"needs {chromium.missing()}")
def test_the_page(pod: Pod, busy: Container, monitor: RunningMonitor, tmp_path: Path) -> None:
    label = f"shop/{NAME}"
    with chromium.browser(tmp_path) as page:
        page.size(1280, 900)
        page.open(f"http://{monitor.address}/")
        row = eventually(
            lambda: page.evaluate(ROWS + ".map(row => row.textContent).join()"),
            "the sandbox's row, with its use",
            lambda seen: "MiB" in seen and " %" in seen,
        )
        assert label in row
        assert "running" in row
        assert int(page.text("#count")) >= 1
        assert page.text("#link") == "live"
        # Its name is text here.
        assert page.evaluate("document.querySelectorAll('#list b, main script').length") == 0

        # By the keyboard alone: filter, move to the row, open it.
        for key in "/shop":
            page.press(key)
        page.press("ArrowDown")
        assert page.evaluate("document.activeElement.textContent") == label
        page.press("Enter")
        page.wait("location.pathname.startsWith('/sandbox/') && document.readyState === 'complete'", "its page")
        page.wait("document.querySelectorAll('.phases dt').length > 3", "where its start time went")
        assert page.text("h1") == label
        eventually(lambda: page.text("#console"), "the guest's console")
        containers = eventually(
            lambda: page.text("main table"), "three containers", lambda seen: seen.count("running") == 3
        )
        assert busy.id[:12] in containers
        page.wait("document.querySelector('.plot .line') !== null", "a plot")

        busy.exec("true")
        eventually(lambda: page.text(".events"), "the exec's end", lambda seen: "exec-exited" in seen)
        busy.stop()
        # containerd deletes it at once, so that its end may never be seen in the table.
        eventually(lambda: page.text("main table"), "its end", lambda seen: seen.count("running") == 2)
        eventually(lambda: page.text(".events"), "the same as an event", lambda seen: "exit status 137" in seen)

        for scheme in ("light", "dark"):
            page.scheme(scheme)
            page.size(1280, 900)
            page.screenshot(tmp_path / f"{scheme}.png")
            page.size(360, 800)
            page.screenshot(tmp_path / f"{scheme}-narrow.png")
            # Nothing is cut off, or has to be reached for.
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.press("Escape")
        page.wait(f"location.pathname === '/' && {ROWS}.length === 1", "the list")
        assert page.complaints == []


def test_a_sandbox_that_dies_takes_nothing_along(pod: Pod, monitor: RunningMonitor) -> None:
    whole(monitor, pod)
    directory = f"/run/kata/{pod.id}@k8s.io"
    shim = json.loads(monitor.get(f"/api/sandboxes/{pod.id}@k8s.io"))["vm"]["pid"]
    for pid in {shim, *processes_of(directory)}:
        with suppress(ProcessLookupError):  # they end with each other
            os.kill(pid, signal.SIGKILL)
    # As often as can be until it is gone: each answer is whole.
    eventually(
        lambda: (monitor.get("/sandboxes"), monitor.get("/metrics")),
        "it is gone",
        lambda seen: not any(pod.id in text for text in seen),
    )
