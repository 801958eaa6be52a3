"""A byte stream over a call: whole in both directions, ends apart, slow ends, broken ones, and rules."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from kata.ttrpc import CallContext, Client, Code, RemoteProtocolError, Server, StatusError, Stream, StreamHandler
from kata.ttrpc.relay import WINDOW, relay
from tests.support.waiting import eventually_async

pytestmark = pytest.mark.timeout(30)


async def pair() -> tuple[asyncio.StreamReader, asyncio.StreamWriter, socket.socket]:
    """The relay's side of a connection, and the other one."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=ours)
    return reader, writer, theirs


@asynccontextmanager
async def relayed() -> AsyncIterator[tuple[socket.socket, socket.socket, asyncio.Task[None]]]:
    """The two ends of what a relay on either side of a call makes one connection, and the client's relay."""
    far_reader, far_writer, far = await pair()

    async def serve(ctx: CallContext, stream: Stream) -> None:
        await relay(stream, far_reader, far_writer)

    server = Server({("s", "m"): StreamHandler(serve)})
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(server.serve_connection(*await asyncio.open_connection(sock=theirs)))
    reader, writer, near = await pair()
    async with await Client.from_socket(ours) as client:

        async def call() -> None:
            async with client.stream("s", "m") as stream:
                await relay(stream, reader, writer)

        calling = asyncio.create_task(call())
        with near, far:
            yield near, far, calling
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
    await serving


async def relay_to(serve: Callable[[CallContext, Stream], Awaitable[None]]) -> None:
    """Relay a connection to a call that is served so."""
    reader, writer, near = await pair()
    server = Server({("s", "m"): StreamHandler(serve)})
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(server.serve_connection(*await asyncio.open_connection(sock=theirs)))
    try:
        with near:
            async with await Client.from_socket(ours) as client, client.stream("s", "m") as stream:
                await relay(stream, reader, writer)
    finally:
        await serving


async def receive(sock: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size and (piece := await loop.sock_recv(sock, size - len(data))):
        data += piece
    return data


async def test_both_directions_are_whole_and_end_apart() -> None:
    loop = asyncio.get_running_loop()
    async with relayed() as (near, far, calling):
        question, answer = bytes(range(256)) * 8192, b"answer" * 400_000
        await asyncio.gather(loop.sock_sendall(near, question), _check(far, question))
        near.shutdown(socket.SHUT_WR)
        assert await loop.sock_recv(far, 1) == b""
        await asyncio.gather(loop.sock_sendall(far, answer), _check(near, answer))
        assert not calling.done()
        far.shutdown(socket.SHUT_WR)
        assert await loop.sock_recv(near, 1) == b""
        await calling


async def _check(sock: socket.socket, expected: bytes) -> None:
    assert await receive(sock, len(expected)) == expected


async def test_an_end_that_reads_nothing_holds_up_its_sender_and_no_other() -> None:
    loop = asyncio.get_running_loop()
    async with relayed() as (near, far, _):
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                await loop.sock_sendall(near, bytes(1 << 16))
                sent += 1 << 16

        flooding = asyncio.create_task(flood())
        await eventually_async(lambda: sent, "a full window", lambda sent: sent >= WINDOW)
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.2)
        assert WINDOW <= sent < WINDOW + (4 << 20)
        await loop.sock_sendall(far, b"back")
        assert await receive(near, 4) == b"back"
        await _check(far, bytes(sent))
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)


async def test_a_broken_connection_breaks_the_other() -> None:
    loop = asyncio.get_running_loop()
    async with relayed() as (near, far, calling):
        far.close()  # nobody reads or writes any more: what comes is an error
        await loop.sock_sendall(near, b"x")
        with pytest.raises((StatusError, OSError)):
            await calling


async def test_the_callers_going_is_the_end_for_the_server() -> None:
    loop = asyncio.get_running_loop()
    async with relayed() as (_, far, calling):
        await asyncio.sleep(0)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert await loop.sock_recv(far, 1) == b""


@pytest.mark.parametrize(
    "message",
    [b"", b"\2", b"\1", b"\1\0\0\0", b"\1\xff\xff\xff\xff", b"\0" + bytes(WINDOW + 1)],
    ids=["empty", "unknown", "no-number", "short-number", "too-large-a-grant", "more-than-granted"],
)
async def test_a_hostile_end_is_left(message: bytes) -> None:
    async def serve(ctx: CallContext, stream: Stream) -> None:
        await stream.send(message)
        await stream.receive()

    with pytest.raises(RemoteProtocolError, match="invalid relay message"):
        await relay_to(serve)


async def test_a_refused_call_says_why() -> None:
    async def serve(ctx: CallContext, stream: Stream) -> None:
        raise StatusError(Code.UNAVAILABLE, "nobody listens")

    with pytest.raises(StatusError, match="nobody listens"):
        await relay_to(serve)
