"""Streaming calls between the asyncio client and server."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest

from kata.ttrpc import (
    CallContext,
    Client,
    Code,
    ConnectionClosed,
    Handlers,
    LocalProtocolError,
    MessageTooLarge,
    StatusError,
    Stream,
    StreamHandler,
    frames,
)
from kata.ttrpc.envelope import Request, Response, decode_request, decode_response, request_parts

if TYPE_CHECKING:
    from tests.unit.ttrpc.conftest import Connected, Peer, RawClient

ECHO = ("test.Service", "Echo")
UNARY = ("test.Service", "Unary")


async def echo(ctx: CallContext, stream: Stream) -> None:
    async for message in stream:
        await stream.send(message)


async def unary(ctx: CallContext, payload: bytes) -> bytes:
    return payload


HANDLERS: Handlers = {ECHO: StreamHandler(echo), UNARY: unary}


def request(stream_id: int, target: tuple[str, str], flags: int) -> bytes:
    return frames.encode(stream_id, frames.REQUEST, flags, request_parts(Request(*target)))


async def test_messages_go_both_ways_and_both_sides_end(connected: Connected) -> None:
    _, client = await connected(HANDLERS)
    messages = [b"", b"x", os.urandom(300_000)]
    async with client.stream(*ECHO, timeout=10) as stream:
        for message in messages:
            await stream.send(message)
            assert await stream.receive() == message
        await stream.close_send()
        assert [message async for message in stream] == []
        assert await stream.receive() is None
        with pytest.raises(LocalProtocolError):
            await stream.send(b"after the end")
        await stream.close_send()
    assert await client.call(*UNARY, b"x") == b"x"


async def test_client_streams_and_server_answers_once(connected: Connected) -> None:
    async def total(ctx: CallContext, stream: Stream) -> bytes:
        return str(sum([int(message) async for message in stream])).encode()

    _, client = await connected({ECHO: StreamHandler(total)})
    async with client.stream(*ECHO) as stream:
        for number in range(10):
            await stream.send(str(number).encode())
        assert await stream.result() == b"45"


async def test_server_streams_in_answer_to_one_message(connected: Connected) -> None:
    async def repeat(ctx: CallContext, stream: Stream) -> None:
        message = await stream.receive()
        assert message is not None
        assert await stream.receive() is None
        for _ in range(3):
            await stream.send(message)

    _, client = await connected({ECHO: StreamHandler(repeat)})
    for payload in (b"x", b""):
        async with client.stream(*ECHO, payload, client_streams=False) as stream:
            assert [message async for message in stream] == [payload] * 3
            assert await stream.result() == b""


async def test_request_of_a_streaming_client_may_carry_the_first_message(connected: Connected) -> None:
    _, client = await connected(HANDLERS)
    async with client.stream(*ECHO, b"first") as stream:
        await stream.send(b"second")
        await stream.close_send()
        assert [message async for message in stream] == [b"first", b"second"]


async def test_many_streams_at_once(connected: Connected) -> None:
    _, client = await connected(HANDLERS)

    async def talk(number: int) -> None:
        async with client.stream(*ECHO, timeout=20) as stream:
            for turn in range(20):
                message = f"{number}/{turn}".encode()
                await stream.send(message)
                assert await stream.receive() == message

    await asyncio.gather(*(talk(number) for number in range(50)))


async def test_failure_comes_after_the_messages_before_it(connected: Connected) -> None:
    async def fail(ctx: CallContext, stream: Stream) -> None:
        await stream.send(b"one")
        raise StatusError(Code.ABORTED, "enough")

    _, client = await connected({ECHO: StreamHandler(fail)})
    async with client.stream(*ECHO) as stream:
        await asyncio.sleep(0.02)
        assert await stream.receive() == b"one"
        with pytest.raises(StatusError, match="enough"):
            await stream.receive()
        with pytest.raises(StatusError, match="enough"):
            await stream.result()


async def test_kinds_of_calls_are_not_mixed_up(raw_client: RawClient) -> None:
    _, peer = await raw_client(HANDLERS)
    for stream_id, target, flags, code in (
        (1, ECHO, 0, Code.INVALID_ARGUMENT),
        (3, UNARY, frames.REMOTE_OPEN, Code.INVALID_ARGUMENT),
        (5, UNARY, frames.REMOTE_CLOSED, Code.OK),
    ):
        await peer.send(request(stream_id, target, flags))
        answered, kind, _, data = await peer.frame()
        assert (answered, kind, decode_response(data).status.code) == (stream_id, frames.RESPONSE, code)


async def test_wire_format_of_a_stream(raw_client: RawClient) -> None:
    _, peer = await raw_client(HANDLERS)
    await peer.send(request(1, ECHO, frames.REMOTE_OPEN) + frames.encode(1, frames.DATA, 0, (b"x",)))
    assert await peer.frame() == (1, frames.DATA, 0, b"x")
    await peer.send(frames.encode(1, frames.DATA, frames.REMOTE_CLOSED | frames.NO_DATA, ()))
    assert await peer.frame() == (1, frames.DATA, frames.REMOTE_CLOSED | frames.NO_DATA, b"")


async def test_leaving_the_block_tells_the_server(raw_server: tuple[Client, Peer]) -> None:
    client, peer = raw_server
    async with client.stream(*ECHO):
        stream_id, _, flags, data = await peer.frame()
        assert (flags, decode_request(data).method) == (frames.REMOTE_OPEN, "Echo")
    assert await peer.frame() == (stream_id, frames.DATA, frames.REMOTE_CLOSED | frames.NO_DATA, b"")
    # What still comes is dropped, and the connection lives.
    await peer.send(frames.encode(stream_id, frames.DATA, 0, (b"late",)))
    call = asyncio.ensure_future(client.call(*UNARY, timeout=5))
    await peer.send(frames.encode((await peer.frame())[0], frames.RESPONSE, 0, (b"",)))
    assert await call == b""
    assert client._streams == {}


async def test_deadline_of_a_stream_holds_on_both_sides(connected: Connected) -> None:
    ended = asyncio.Event()

    async def wait(ctx: CallContext, stream: Stream) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    _, client = await connected({ECHO: StreamHandler(wait)})
    with pytest.raises(StatusError) as caught:
        async with client.stream(*ECHO, timeout=0.05) as stream:
            await stream.receive()
    assert caught.value.code == Code.DEADLINE_EXCEEDED
    await asyncio.wait_for(ended.wait(), 60)


async def test_timeouts_of_the_block_itself_stay_what_they_are(connected: Connected) -> None:
    _, client = await connected(HANDLERS)

    async def impatient() -> None:
        async with client.stream(*ECHO, timeout=10) as stream, asyncio.timeout(0.01):
            await stream.receive()

    with pytest.raises(TimeoutError):
        await impatient()


async def test_stream_that_is_not_read_ends_alone(raw_server: tuple[Client, Peer]) -> None:
    """At the bound of its queue the slow stream fails, with what it had; the others go on."""
    client, peer = raw_server
    async with client.stream(*ECHO) as slow, client.stream(*ECHO) as other:
        ids = [(await peer.frame())[0] for _ in range(2)]
        for _ in range(5):
            await peer.send(frames.encode(ids[0], frames.DATA, 0, (bytes(1 << 20),)))
        await peer.send(frames.encode(ids[1], frames.DATA, 0, (b"fine",)))
        assert await other.receive() == b"fine"
        assert [len(await slow.receive() or b"") for _ in range(3)] == [1 << 20] * 3
        for use in (slow.receive(), slow.send(b"x")):
            with pytest.raises(StatusError) as caught:
                await use
            assert caught.value.code == Code.RESOURCE_EXHAUSTED


async def take_all(stream: Stream, into: list[bytes]) -> None:
    async for message in stream:
        into.append(message)
        await asyncio.sleep(0)


async def test_empty_messages_count_against_the_bound(raw_server: tuple[Client, Peer]) -> None:
    client, peer = raw_server
    async with client.stream(*ECHO) as stream:
        await peer.frame()
        await peer.send(frames.encode(1, frames.DATA, 0, ()) * 50_000)
        received: list[bytes] = []
        with pytest.raises(StatusError):
            await take_all(stream, received)
        assert 0 < len(received) < 50_000


async def test_one_message_always_fits(connected: Connected) -> None:
    _, client = await connected(HANDLERS, max_queue=1)
    message = bytes(frames.MAX_MESSAGE)
    async with client.stream(*ECHO, timeout=10) as stream:
        await stream.send(message)
        assert await stream.receive() == message
        with pytest.raises(MessageTooLarge):
            await stream.send(message + b"x")


async def test_handler_that_does_not_read_is_ended(raw_client: RawClient) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(ctx: CallContext, stream: Stream) -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    _, peer = await raw_client({ECHO: StreamHandler(slow), UNARY: unary}, max_queue=1000)
    await peer.send(request(1, ECHO, frames.REMOTE_OPEN))
    await started.wait()
    await peer.send(frames.encode(1, frames.DATA, 0, (bytes(600),)) * 2)
    stream_id, kind, _, data = await peer.frame()
    assert (stream_id, kind, decode_response(data).status.code) == (1, frames.RESPONSE, Code.RESOURCE_EXHAUSTED)
    await asyncio.wait_for(cancelled.wait(), 60)
    await peer.send(request(3, UNARY, 0))
    assert decode_response((await peer.frame())[3]) == Response()


async def test_sender_is_held_back_by_a_peer_that_does_not_read(raw_server: tuple[Client, Peer]) -> None:
    client, _ = raw_server
    async with client.stream(*ECHO) as stream:
        sent = 0

        async def send_on_and_on() -> None:
            nonlocal sent
            while sent < 1000:
                await stream.send(bytes(100_000))
                sent += 1

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(send_on_and_on(), 0.2)
        assert 0 < sent < 20


async def test_streams_fail_when_the_connection_goes(raw_server: tuple[Client, Peer]) -> None:
    client, peer = raw_server
    async with client.stream(*ECHO) as stream:
        await peer.frame()
        await peer.send(frames.encode(1, frames.DATA, 0, (b"last",)))
        peer.sock.shutdown(socket.SHUT_RDWR)
        await asyncio.wait_for(client.wait_closed(), 60)
        assert await stream.receive() == b"last"
        for use in (stream.receive(), stream.send(b"x"), stream.result()):
            with pytest.raises(ConnectionClosed):
                await use


async def test_stream_cannot_begin_on_a_closed_connection(raw_server: tuple[Client, Peer]) -> None:
    client, _ = raw_server
    await client.close()
    with pytest.raises(ConnectionClosed):
        async with client.stream(*ECHO):
            raise AssertionError("the block was entered")
