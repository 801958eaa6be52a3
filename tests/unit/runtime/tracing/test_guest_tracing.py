"""Tracing a guest whose agent knows nothing of it, sends garbage, or does not end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kata.agent.tracing import Tracing
from kata.protocols import agent_pb2, traces
from kata.runtime import tracing
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.config.settings import RuntimeConfig
from kata.runtime.tracing.guest import _MAX_REFUSED, GuestTracing
from kata.runtime.tracing.sender import forwarder_socket
from kata.trace_forwarder.receiver import Receiver
from kata.ttrpc import CallContext, Client, Server, Stream, StreamHandler
from tests.support.otlp import spans_of
from tests.support.waiting import eventually_async

SERVICE = "grpc.AgentService"


async def answer(ctx: CallContext, payload: bytes) -> bytes:
    return b""


class Guest:
    """An agent of a few handlers, traced."""

    def __init__(self, directory: Path) -> None:
        self.handlers: dict[tuple[str, str], Any] = {
            (SERVICE, name): answer for name in ("PauseContainer", "StatsContainer")
        }
        self.server = Server(self.handlers)
        self.spans: list[dict[str, Any]] = []
        self.tracer = tracing.turn_on(
            RuntimeConfig(enable_tracing=True, trace_forwarder_socket=directory / "f"), "box", "", {}
        )
        self._directory = directory
        self._receiver = Receiver(lambda request: self.spans.extend(spans_of(request.SerializeToString())))

    async def begin(self) -> GuestTracing:
        await self._receiver.listen_unix(forwarder_socket(str(self._directory / "f")))
        await self.server.serve_unix(str(self._directory / "agent"))
        self.agent = AgentClient(await Client.connect_unix(str(self._directory / "agent")))
        return GuestTracing(self.tracer, self.agent)

    async def end(self) -> None:
        await self.agent.close()
        await self.server.close()
        await tracing.turn_off()
        await self._receiver.close()


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[Guest]:
    guest = Guest(tmp_path)
    yield guest
    await guest.end()


async def pause(guest: Guest) -> None:
    with guest.tracer.operation("operation"):
        await guest.agent.pause_container("box")


async def test_both_sides_of_a_call_and_nothing_of_one_outside_of_a_trace(guest: Guest) -> None:
    of_guest = Tracing(guest.server)
    guest.handlers.update(of_guest.handlers())
    traced = await guest.begin()
    await traced.start()
    await guest.agent.pause_container("box")
    await pause(guest)
    await eventually_async(lambda: len(guest.spans) == 3, "operation, call and the guest's part have been sent")
    by_kind = {span["kind"]: span for span in guest.spans}
    assert (by_kind[2]["parent"], by_kind[3]["parent"]) == (by_kind[3]["id"], by_kind[1]["id"])
    of_guest.close()
    await traced.end()


async def test_an_agent_that_does_not_know_it(guest: Guest, caplog: pytest.LogCaptureFixture) -> None:
    traced = await guest.begin()
    await traced.start()
    assert "no spans from the guest" in caplog.text
    await pause(guest)
    await eventually_async(lambda: len(guest.spans) == 2, "the host's spans have been sent")
    await traced.end()


async def test_a_guest_that_sends_anything_is_not_listened_to_for_long(
    guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    sent = 0

    async def flood(ctx: CallContext, stream: Stream) -> None:
        nonlocal sent
        while True:
            await stream.send(bytes(1000))
            sent += 1

    guest.handlers[SERVICE, "StartTracing"] = answer
    guest.handlers[traces.SERVICE, traces.FOLLOW] = StreamHandler(flood)
    traced = await guest.begin()
    await traced.start()
    await eventually_async(lambda: "it is not listened to" in caplog.text, "the guest is found out")
    assert sent >= _MAX_REFUSED
    await pause(guest)
    await eventually_async(lambda: len(guest.spans) == 2, "the host's spans have been sent")
    await traced.end()


async def test_one_that_does_not_end_is_not_waited_for(guest: Guest) -> None:
    async def hang(ctx: CallContext, stream: Stream) -> None:
        await asyncio.sleep(60)

    guest.handlers[SERVICE, "StartTracing"] = answer
    guest.handlers[traces.SERVICE, traces.FOLLOW] = StreamHandler(hang)
    traced = await guest.begin()
    await traced.start()
    begin = time.monotonic()
    await traced.end()
    assert time.monotonic() - begin < 20


async def test_a_failing_call_says_why(guest: Guest) -> None:
    traced = await guest.begin()
    with guest.tracer.operation("operation"), pytest.raises(Exception, match="not served here"):
        await guest.agent._call("start", "StartContainer", agent_pb2.StartContainerRequest())
    await eventually_async(lambda: len(guest.spans) == 2, "both spans have been sent")
    call = next(span for span in guest.spans if span["kind"] == 3)
    assert call["failed"]
    assert "not served here" in call["message"]
    await traced.end()
