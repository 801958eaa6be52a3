"""The spans of a process: what is recorded, in which tree, and nothing when tracing is off."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from kata.log_fields import CONTAINER
from kata.runtime import tracing
from kata.runtime.config.settings import RuntimeConfig
from kata.runtime.launch.timings import Timings
from kata.runtime.tracing.identity import attributes
from kata.runtime.tracing.sender import forwarder_socket
from kata.runtime.tracing.tracer import Tracer, end_call
from kata.trace_forwarder.receiver import Receiver
from tests.support.otlp import spans_of
from tests.support.waiting import eventually_async


class Traced:
    """Tracing that is on, and what it has sent."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.spans: list[dict[str, Any]] = []

    async def named(self, name: str) -> dict[str, Any]:
        await eventually_async(lambda: name in [span["name"] for span in self.spans], f"{name} has been sent")
        return next(span for span in self.spans if span["name"] == name)


@pytest.fixture
async def traced(tmp_path: Path) -> AsyncIterator[Traced]:
    config = RuntimeConfig(enable_tracing=True, trace_forwarder_socket=tmp_path / "f")
    traced = Traced(tracing.turn_on(config, "box", "k8s.io", {"io.kubernetes.cri.sandbox-name": "pod"}))
    receiver = Receiver(lambda request: traced.spans.extend(spans_of(request.SerializeToString())))
    await receiver.listen_unix(forwarder_socket(str(tmp_path / "f")))
    yield traced
    await tracing.turn_off()
    await receiver.close()


async def test_a_tree_of_spans(traced: Traced, tmp_path: Path) -> None:
    timings = Timings(tmp_path, time.monotonic())
    begun = time.monotonic()
    with traced.tracer.operation("all", begun - 0.5):
        with timings.phase("phase", "box"):
            with tracing.span("inner"):
                await asyncio.sleep(0.01)
        timings.add("earlier", begun - 0.2)
    root, phase, inner, earlier = [await traced.named(name) for name in ("all", "phase", "inner", "earlier")]
    assert root["parent"] == ""
    assert [span["parent"] for span in (phase, inner, earlier)] == [root["id"], phase["id"], root["id"]]
    assert len({span["trace"] for span in (root, phase, inner, earlier)}) == 1
    assert root["start"] < earlier["start"] < phase["start"] <= inner["start"] < inner["end"] <= phase["end"]
    assert earlier["end"] - earlier["start"] >= 200_000_000
    assert phase["attributes"] == {"container.id": "box"}
    assert root["resource"].items() >= {
        ("service.name", "kata-runtime"),
        ("kata.sandbox.id", "box"),
        ("containerd.namespace", "k8s.io"),
        ("k8s.pod.name", "pod"),
    }


async def test_an_error_is_that_of_all_spans_around_it(traced: Traced) -> None:
    with pytest.raises(ValueError, match="wrong"), traced.tracer.operation("all"), tracing.span("failing"):
        raise ValueError("wrong")
    for name in ("all", "failing"):
        span = await traced.named(name)
        assert (span["failed"], span["message"]) == (True, "wrong")


async def test_what_outlives_its_span_is_left_out(traced: Traced) -> None:
    go = asyncio.Event()

    async def later() -> None:
        await go.wait()
        with tracing.span("late"):
            tracing.record("later still", time.monotonic())

    with traced.tracer.operation("over"):
        task = asyncio.create_task(later())
    go.set()
    await task
    with traced.tracer.operation("last"):
        pass
    await traced.named("last")
    assert [span["name"] for span in traced.spans] == ["over", "last"]


async def test_the_status_of_a_call(traced: Traced) -> None:
    CONTAINER.set("box")
    end_call(traced.tracer.begin_call("a.Service", "Do", SpanKind.CLIENT, parent=Context()), 5, "not there")
    span = await traced.named("a.Service/Do")
    assert (span["failed"], span["message"]) == (True, "not there")
    assert span["attributes"] == {
        "rpc.system": "ttrpc",
        "rpc.service": "a.Service",
        "rpc.method": "Do",
        "rpc.grpc.status_code": 5,
        "container.id": "box",
    }


async def test_the_last_spans_are_sent_when_it_is_turned_off(traced: Traced) -> None:
    with traced.tracer.operation("last words"):
        pass
    await tracing.turn_off()
    await traced.named("last words")
    assert tracing.active() is None


def test_whose_they_are() -> None:
    assert attributes("box", "", {}) == {"kata.sandbox.id": "box"}
    assert attributes("box", "", {"io.kubernetes.pod.name": "of CRI-O", "io.kubernetes.pod.uid": "u"}) == {
        "kata.sandbox.id": "box",
        "k8s.pod.name": "of CRI-O",
        "k8s.pod.uid": "u",
    }


def test_off_it_records_nothing_and_imports_nothing() -> None:
    program = (
        "from kata.shim.imports import leave_out_inspect; leave_out_inspect()\n"
        "import sys, kata.shim.prelaunch, kata.shim.daemon, kata.runtime.launch.bring_up\n"
        "from kata.runtime import tracing\n"
        "with tracing.span('x'): tracing.record('y', 0.0)\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'kata.shim.tracing'))"
        " or name.startswith('kata.runtime.tracing.')])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
