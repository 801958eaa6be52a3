"""What observers of clients and servers are told of each call."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kata.ttrpc import CallContext, Code, ConnectionClosed, MessageTooLarge, Stream, StreamHandler
from kata.ttrpc.errors import StatusError
from kata.ttrpc.observer import Done

if TYPE_CHECKING:
    from tests.unit.ttrpc.conftest import Connected

ECHO, FAIL, HANG, COUNT = (("test.Service", name) for name in ("Echo", "Fail", "Hang", "Count"))


class Recorder:
    """An observer that notes what it is told, and adds to the metadata if it has something to add."""

    def __init__(self, added: dict[str, str] | None = None) -> None:
        self.begun: list[tuple[str, str, bytes, dict[str, str]]] = []
        self.ended: list[tuple[str, int, str]] = []
        self._added = added or {}

    def __call__(self, service: str, method: str, payload: bytes, metadata: dict[str, str]) -> Done:
        metadata.update(self._added)
        self.begun.append((service, method, payload, dict(metadata)))
        return lambda code, text: self.ended.append((method, code, text))


async def echo(ctx: CallContext, payload: bytes) -> bytes:
    return payload + str(sorted(ctx.metadata)).encode()


async def fail(ctx: CallContext, payload: bytes) -> bytes:
    raise StatusError(Code.NOT_FOUND, "no such thing")


async def hang(ctx: CallContext, payload: bytes) -> bytes:
    await asyncio.sleep(60)
    return b""


async def count(ctx: CallContext, stream: Stream) -> bytes:
    return str(len([message async for message in stream])).encode()


HANDLERS = {ECHO: echo, FAIL: fail, HANG: hang, COUNT: StreamHandler(count)}


async def test_both_sides_are_told_of_a_call_and_the_client_may_add_metadata(connected: Connected) -> None:
    server, client = await connected(HANDLERS)
    ours, theirs = Recorder({"traceparent": "00-x"}), Recorder()
    client.observers.append(ours)
    server.observers.append(theirs)
    given = {"key": "value"}
    assert await client.call(*ECHO, b"text", metadata=given) == b"text['key', 'traceparent']"
    assert given == {"key": "value"}, "the caller's own is left alone"
    told = [(*ECHO, b"text", {"key": "value", "traceparent": "00-x"})]
    assert ours.begun == theirs.begun == told
    assert ours.ended == theirs.ended == [("Echo", Code.OK, "")]


async def test_they_are_told_how_a_call_has_failed(connected: Connected) -> None:
    server, client = await connected(HANDLERS)
    ours, theirs = Recorder(), Recorder()
    client.observers.append(ours)
    server.observers.append(theirs)
    with pytest.raises(StatusError):
        await client.call(*FAIL)
    with pytest.raises(StatusError):
        await client.call(*HANG, timeout=0.2)
    with pytest.raises(MessageTooLarge):
        await client.call(*ECHO, bytes(5 << 20))
    calling = asyncio.create_task(client.call(*HANG))
    while len(theirs.begun) < 3:
        await asyncio.sleep(0.01)
    await server.close()
    with pytest.raises(ConnectionClosed):
        await calling
    assert [(method, code) for method, code, _ in ours.ended] == [
        ("Fail", Code.NOT_FOUND),
        ("Hang", Code.DEADLINE_EXCEEDED),
        ("Echo", Code.RESOURCE_EXHAUSTED),
        ("Hang", Code.UNAVAILABLE),
    ]
    assert ours.ended[0][2] == "no such thing"
    assert [(method, code) for method, code, _ in theirs.ended] == [
        ("Fail", Code.NOT_FOUND),
        ("Hang", Code.DEADLINE_EXCEEDED),
        ("Hang", Code.CANCELLED),
    ]


async def test_a_stream_is_one_call(connected: Connected) -> None:
    server, client = await connected(HANDLERS)
    ours, theirs = Recorder(), Recorder()
    client.observers.append(ours)
    server.observers.append(theirs)
    async with client.stream(*COUNT) as stream:
        for _ in range(3):
            await stream.send(b"x")
        assert ours.begun
        assert not ours.ended
        assert await stream.result() == b"3"
    with pytest.raises(RuntimeError, match="its own"):
        async with client.stream(*COUNT):
            raise RuntimeError("the caller's its own")
    assert [code for _, code, _ in ours.ended] == [Code.OK, Code.UNKNOWN]
    assert theirs.ended[0] == ("Count", Code.OK, "")


async def test_an_observer_may_be_interested_in_beginnings_only(connected: Connected) -> None:
    server, client = await connected(HANDLERS)
    seen: list[str] = []

    def observe(service: str, method: str, payload: bytes, metadata: dict[str, str]) -> None:
        seen.append(method)

    client.observers.append(observe)
    server.observers.append(observe)
    await client.call(*ECHO)
    assert seen == ["Echo", "Echo"]


async def test_a_call_that_is_refused_before_it_has_a_handler_is_no_call_of_the_servers(connected: Connected) -> None:
    server, client = await connected(HANDLERS)
    theirs = Recorder()
    server.observers.append(theirs)
    with pytest.raises(StatusError):
        await client.call("test.Service", "Nothing")
    assert theirs.begun == []
