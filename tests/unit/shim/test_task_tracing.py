"""containerd's calls as traces: which calls are one operation, and what it is called."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from kata.protocols.containerd import task_v2_pb2 as task
from kata.protocols.traces import TraceParent
from kata.runtime import tracing
from kata.runtime.config.settings import RuntimeConfig
from kata.runtime.tracing.sender import forwarder_socket
from kata.shim.params import ShimParams
from kata.shim.tracing import TaskTracing, annotations_of
from kata.trace_forwarder.receiver import Receiver
from tests.support.otlp import spans_of
from tests.support.waiting import eventually_async

SERVICE = "containerd.task.v2.Task"
CALLER = TraceParent(b"T" * 16, b"P" * 8)


class Shim:
    """A traced shim, as its server's observer sees it."""

    def __init__(self, traced: TaskTracing) -> None:
        self.spans: list[dict[str, Any]] = []
        self.traced = traced

    async def call(self, method: str, request: Message, code: int = 0, *, caller: TraceParent | None = None) -> bool:
        """Whether the call is traced."""
        metadata = {"traceparent": str(caller)} if caller else {}
        done = self.traced(SERVICE, method, request.SerializeToString(), metadata)
        if done:
            done(code, "it failed" if code else "")
        return done is not None

    async def sent(self, number: int) -> dict[str, dict[str, Any]]:
        """So many spans, by their names without the service's."""
        await eventually_async(lambda: len(self.spans) >= number, f"{number} spans have been sent")
        assert len(self.spans) == number
        return {span["name"].removeprefix(f"{SERVICE}/"): span for span in self.spans}


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    config = RuntimeConfig(enable_tracing=True, trace_forwarder_socket=tmp_path / "f")
    shim = Shim(TaskTracing(tracing.turn_on(config, "box", "", {}), time.monotonic() - 5))
    receiver = Receiver(lambda request: shim.spans.extend(spans_of(request.SerializeToString())))
    await receiver.listen_unix(forwarder_socket(str(tmp_path / "f")))
    yield shim
    await tracing.turn_off()
    await receiver.close()


async def test_create_and_start_are_one_operation_which_began_with_the_shim(shim: Shim) -> None:
    await shim.call("Create", task.CreateTaskRequest(id="box"))
    await shim.call("Start", task.StartRequest(id="box"))
    spans = await shim.sent(3)
    start = spans["start"]
    assert (start["parent"], start["attributes"]) == ("", {"container.id": "box"})
    assert spans["Create"]["parent"] == spans["Start"]["parent"] == start["id"]
    assert start["end"] - start["start"] >= 5_000_000_000
    assert spans["Start"]["end"] - spans["Start"]["start"] < 5_000_000_000


async def test_each_container_and_process_has_its_own(shim: Shim) -> None:
    for name in ("one", "two"):
        await shim.call("Create", task.CreateTaskRequest(id=name))
    await shim.call("Exec", task.ExecProcessRequest(id="one", exec_id="shell"))
    await shim.call("Start", task.StartRequest(id="two"))
    await shim.call("Start", task.StartRequest(id="one", exec_id="shell"))
    await shim.call("Start", task.StartRequest(id="one"))
    spans = await shim.sent(9)
    assert len({span["trace"] for span in spans.values()}) == 3
    assert spans["exec"]["attributes"] == {"container.id": "one", "kata.exec.id": "shell"}
    assert spans["Exec"]["parent"] == spans["exec"]["id"]


async def test_kill_and_delete_are_a_stop(shim: Shim) -> None:
    await shim.call("Kill", task.KillRequest(id="box", signal=signal.SIGTERM))
    await shim.call("Kill", task.KillRequest(id="box", signal=signal.SIGKILL), 5)
    await shim.call("Delete", task.DeleteRequest(id="box"))
    await shim.sent(4)
    stop = next(span for span in shim.spans if span["name"] == "stop")
    assert [span["parent"] for span in shim.spans if span is not stop] == [stop["id"]] * 3
    assert not stop["failed"], "what has ended cannot be killed, and that is no failure of the stop"


async def test_other_signals_and_pauses_are_traces_by_themselves(shim: Shim) -> None:
    await shim.call("Kill", task.KillRequest(id="box", signal=signal.SIGHUP))
    await shim.call("Kill", task.KillRequest(id="box", exec_id="shell", signal=signal.SIGKILL))
    await shim.call("Pause", task.PauseRequest(id="box"))
    await shim.sent(3)
    assert {span["parent"] for span in shim.spans} == {""}


@pytest.mark.parametrize(("method", "request_"), [("Create", "CreateTaskRequest"), ("Exec", "ExecProcessRequest")])
async def test_an_operation_that_fails_at_once(shim: Shim, method: str, request_: str) -> None:
    await shim.call(method, getattr(task, request_)(id="box"), 13)
    spans = await shim.sent(2)
    assert all(span["failed"] and span["message"] == "it failed" for span in spans.values())


async def test_what_was_prepared_and_never_started_ends_with_its_container(shim: Shim) -> None:
    await shim.call("Create", task.CreateTaskRequest(id="box"))
    await shim.call("Exec", task.ExecProcessRequest(id="box", exec_id="never"))
    await shim.call("Delete", task.DeleteRequest(id="box"), 9)
    assert set(await shim.sent(4)) == {"Create", "Exec", "Delete", "stop"}
    await shim.call("Delete", task.DeleteRequest(id="box"))
    await shim.sent(8)
    assert shim.traced._operations == {}


async def test_an_exec_that_is_deleted(shim: Shim) -> None:
    await shim.call("Exec", task.ExecProcessRequest(id="box", exec_id="shell"))
    assert await shim.call("Delete", task.DeleteRequest(id="box", exec_id="shell"))
    assert not await shim.call("Delete", task.DeleteRequest(id="box", exec_id="has run"))
    assert set(await shim.sent(3)) == {"exec", "Exec", "Delete"}


async def test_a_call_of_a_traced_containerd_is_part_of_its_trace(shim: Shim) -> None:
    await shim.call("Create", task.CreateTaskRequest(id="box"), caller=CALLER)
    spans = await shim.sent(1)
    assert (spans["Create"]["trace"], spans["Create"]["parent"]) == (CALLER.trace_id.hex(), CALLER.span_id.hex())


async def test_a_trace_that_containerd_does_not_record_is_not_recorded_here(shim: Shim) -> None:
    await shim.call("Create", task.CreateTaskRequest(id="box"), caller=CALLER._replace(sampled=False))
    await shim.call("Pause", task.PauseRequest(id="box"))
    assert set(await shim.sent(1)) == {"Pause"}


async def test_questions_and_garbage_are_not_traced(shim: Shim) -> None:
    assert not await shim.call("State", task.StateRequest(id="box"))
    assert not await shim.call("Wait", task.WaitRequest(id="box"))
    assert shim.traced(SERVICE, "Create", b"\xff\xff", {}) is None


async def test_what_is_open_when_the_shim_ends_is_ended(shim: Shim) -> None:
    await shim.call("Create", task.CreateTaskRequest(id="box"))
    shim.traced.close()
    assert set(await shim.sent(2)) == {"start", "Create"}


def test_a_bundle_that_cannot_be_read_has_no_annotations(tmp_path: Path) -> None:
    params = ShimParams(
        sandbox_id="s", namespace="n", events_address="", options=b"", debug=False, bundle=str(tmp_path), begun=0.0,
        environment={},
    )  # fmt: skip
    assert annotations_of(params) == {}
