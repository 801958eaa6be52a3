"""The agent's spans: recorded in calls that are traced, encoded by hand, given to the host."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from kata.agent import otlp, tracing
from kata.agent.tracing import Span, Tracing, step
from kata.log_fields import CONTAINER
from kata.protocols import traces
from kata.protocols.traces import TRACEPARENT, TraceParent
from kata.trace_forwarder.receiver import Receiver
from kata.ttrpc import CallContext, Client, ClientStream, Code, Server, StatusError
from tests.support.otlp import spans_of
from tests.support.waiting import eventually_async

WORK, FAIL = ("test.Service", "Work"), ("test.Service", "Fail")
PARENT = TraceParent(b"T" * 16, b"P" * 8)
TRACED = {TRACEPARENT: str(PARENT)}


async def work(ctx: CallContext, payload: bytes) -> bytes:
    CONTAINER.set("box")
    with step("outer"):
        with step("inner"):
            await asyncio.sleep(0.01)
    return b""


async def fail(ctx: CallContext, payload: bytes) -> bytes:
    with step("the one that fails"):
        raise StatusError(Code.NOT_FOUND, "no such thing")


class Agent:
    """A server whose calls are traced, and a client of it."""

    def __init__(self, tracing: Tracing, client: Client) -> None:
        self.tracing = tracing
        self.client = client

    async def next(self, stream: ClientStream) -> list[dict[str, Any]]:
        async with asyncio.timeout(20):
            payload = await stream.receive()
        assert payload is not None
        return spans_of(payload)


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    handlers: dict[tuple[str, str], Any] = {WORK: work, FAIL: fail}
    server = Server(handlers)
    tracing = Tracing(server)
    handlers.update(tracing.handlers())
    await server.serve_unix(str(tmp_path / "agent.sock"))
    async with await Client.connect_unix(str(tmp_path / "agent.sock")) as client:
        yield Agent(tracing, client)
    await server.close()


def following(agent: Agent) -> Any:
    return agent.client.stream(traces.SERVICE, traces.FOLLOW, client_streams=False, timeout=60)


async def test_a_traced_call_and_its_steps_are_one_message(agent: Agent) -> None:
    await agent.client.call("grpc.AgentService", "StartTracing")
    async with following(agent) as stream:
        await agent.client.call(*WORK, metadata=TRACED)
        whole, *steps = await agent.next(stream)
    assert (whole["name"], whole["kind"], whole["parent"]) == ("test.Service/Work", 2, PARENT.span_id.hex())
    assert whole["attributes"] == {
        "rpc.system": "ttrpc",
        "rpc.service": "test.Service",
        "rpc.method": "Work",
        "rpc.grpc.status_code": 0,
        "container.id": "box",
    }
    assert whole["resource"] == {"service.name": "kata-agent"}
    inner, outer = steps
    assert (inner["name"], outer["name"]) == ("inner", "outer")
    assert (inner["parent"], outer["parent"]) == (outer["id"], whole["id"])
    assert {span["trace"] for span in (whole, *steps)} == {PARENT.trace_id.hex()}
    assert whole["start"] <= outer["start"] <= inner["start"] < inner["end"] <= outer["end"] <= whole["end"]
    assert inner["end"] - inner["start"] >= 9_000_000
    assert not whole["failed"]


async def test_what_fails_says_why(agent: Agent) -> None:
    agent.tracing.start()
    async with following(agent) as stream:
        with pytest.raises(StatusError):
            await agent.client.call(*FAIL, metadata=TRACED)
        whole, failed = await agent.next(stream)
    assert whole["failed"]
    assert whole["message"] == "no such thing"
    assert whole["attributes"]["rpc.grpc.status_code"] == Code.NOT_FOUND
    assert failed["failed"]
    assert "no such thing" in failed["message"]


async def test_what_is_not_to_be_traced_is_not(agent: Agent) -> None:
    await agent.client.call(*WORK, metadata=TRACED)  # tracing is off
    agent.tracing.start()
    await agent.client.call(*WORK)
    await agent.client.call(*WORK, metadata={TRACEPARENT: "00-nonsense"})
    await agent.client.call(*WORK, metadata={TRACEPARENT: str(PARENT._replace(sampled=False))})
    await agent.client.call("grpc.AgentService", "StopTracing")
    await agent.client.call(*WORK, metadata=TRACED)
    await agent.client.call("grpc.AgentService", "StartTracing")
    agent.tracing.start()
    await agent.client.call(*FAIL[:1], "Work", metadata=TRACED)
    agent.tracing.close()
    async with following(agent) as stream:
        messages = [message async for message in stream]
    assert len(messages) == 1, "of the last call alone, once"


async def test_spans_wait_for_the_host_within_bounds(agent: Agent) -> None:
    agent.tracing.start()
    for _ in range(tracing._MAX_CALLS + 44):
        await agent.client.call(*WORK, metadata=TRACED)
    agent.tracing.close()
    async with following(agent) as stream:
        assert len([message async for message in stream]) == tracing._MAX_CALLS


async def test_what_follows_ends_with_the_last_span(agent: Agent) -> None:
    agent.tracing.start()
    async with following(agent) as stream:
        await agent.client.call(*WORK, metadata=TRACED)
        agent.tracing.close()
        assert await agent.next(stream)
        async with asyncio.timeout(20):
            assert await stream.receive() is None


async def test_a_call_has_a_bounded_number_of_steps(agent: Agent) -> None:
    call = tracing._Call(PARENT, "call")
    token = tracing._CURRENT.set((call, call.span_id))
    for _ in range(1000):
        with step("again"):
            pass
    tracing._CURRENT.reset(token)
    assert len(call.steps) == tracing._MAX_STEPS


@given(
    st.text(),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 16),
    st.text(),
    st.text(),
)
def test_protobufs_own_decoder_reads_what_is_encoded_by_hand(
    name: str, begin: int, end: int, code: int, error: str, container: str
) -> None:
    spans = [Span(name, b"A" * 8, b"B" * 8, begin, end, code, error, container), Span("step", b"C" * 8, b"A" * 8, 1, 2)]
    request = ExportTraceServiceRequest.FromString(otlp.encode(b"T" * 16, spans))
    first, second = request.resource_spans[0].scope_spans[0].spans
    assert (first.trace_id, first.span_id, first.parent_span_id) == (b"T" * 16, b"A" * 8, b"B" * 8)
    assert first.name == name[: otlp._MAX_TEXT]
    assert (first.start_time_unix_nano, first.end_time_unix_nano) == (begin, end)
    assert first.status.code == (2 if code else 0)
    assert first.status.message == (error[: otlp._MAX_TEXT] if code else "")
    assert (second.name, second.kind) == ("step", 1)


class TestConnection:
    """As over vsock, where the agent connects to the host."""

    async def test_frames(self, agent: Agent, tmp_path: Path) -> None:
        arrived: list[dict[str, Any]] = []
        receiver = Receiver(lambda request: arrived.extend(spans_of(request.SerializeToString())))
        await receiver.listen_unix(str(tmp_path / "host"))
        agent.tracing.start()
        sending = asyncio.create_task(agent.tracing.connect(unix(), str(tmp_path / "host")))
        await agent.client.call(*WORK, metadata=TRACED)
        await eventually_async(lambda: len(arrived) == 3, "the spans have arrived")
        agent.tracing.close()
        async with asyncio.timeout(20):
            await sending
        await receiver.close()

    async def test_a_host_that_does_not_listen(
        self, agent: Agent, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with asyncio.timeout(20):
            await agent.tracing.connect(unix(), str(tmp_path / "nobody"))
        assert "spans cannot be sent to the host" in caplog.text


def unix() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
