"""A client that connects again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kata.ttrpc import (
    CallContext,
    Client,
    ConnectionClosed,
    Handlers,
    ReconnectingClient,
    Server,
    StatusError,
    Stream,
    StreamHandler,
)

ECHO = ("test.Service", "Echo")
STREAM = ("test.Service", "Stream")
DIE = ("test.Service", "Die")


async def echo(ctx: CallContext, payload: bytes) -> bytes:
    return payload


async def echo_stream(ctx: CallContext, stream: Stream) -> None:
    async for message in stream:
        await stream.send(message)


HANDLERS: Handlers = {ECHO: echo, STREAM: StreamHandler(echo_stream)}


class Target:
    """A server that comes and goes, and a count of connections to it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.tries = 0
        self.server: Server | None = None

    async def start(self) -> None:
        self.server = Server(HANDLERS)
        await self.server.serve_unix(self.path)

    async def stop(self) -> None:
        assert self.server is not None
        await self.server.close()

    async def connect(self) -> Client:
        self.tries += 1
        return await Client.connect_unix(self.path)


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(tmp_path / "s.sock")


async def test_connects_with_the_first_call_and_only_once(target: Target) -> None:
    await target.start()
    async with ReconnectingClient(target.connect) as client:
        assert target.tries == 0
        answers = await asyncio.gather(*(client.call(*ECHO, b"x", timeout=5) for _ in range(10)))
        assert answers == [b"x"] * 10
        async with client.stream(*STREAM, timeout=5) as stream:
            await stream.send(b"y")
            assert await stream.receive() == b"y"
        assert target.tries == 1
    await target.stop()


async def test_connects_again_after_the_server_was_away(target: Target) -> None:
    await target.start()
    async with ReconnectingClient(target.connect) as client:
        await client.call(*ECHO)
        await target.stop()
        waiting = asyncio.ensure_future(client.call(*ECHO, b"again", timeout=10))
        while target.tries < 3:
            await asyncio.sleep(0.001)
        await target.start()
        assert await waiting == b"again"
    await target.stop()


async def test_a_lost_call_is_not_repeated(target: Target) -> None:
    calls = 0

    async def die(ctx: CallContext, payload: bytes) -> bytes:
        nonlocal calls
        calls += 1
        started.set()
        await asyncio.sleep(60)
        return b""

    started = asyncio.Event()
    server = Server({DIE: die})
    await server.serve_unix(target.path)
    async with ReconnectingClient(target.connect) as client:
        call = asyncio.ensure_future(client.call(*DIE))
        await started.wait()
        await server.close()
        await target.start()
        with pytest.raises(ConnectionClosed):
            await call
        assert await client.call(*ECHO, b"x") == b"x"
    assert calls == 1
    await target.stop()


async def test_gives_up_at_its_own_deadline_and_says_why(target: Target) -> None:
    client = ReconnectingClient(target.connect, connect_timeout=0.3)
    with pytest.raises(ConnectionClosed, match="No such file") as caught:
        await client.call(*ECHO)
    assert isinstance(caught.value.cause, FileNotFoundError)
    assert 1 < target.tries < 12
    await client.close()


async def test_gives_up_at_the_calls_deadline(target: Target) -> None:
    client = ReconnectingClient(target.connect)
    with pytest.raises(ConnectionClosed, match="No such file"):
        await client.call(*ECHO, timeout=0.05)
    with pytest.raises(ConnectionClosed, match="No such file"):
        async with client.stream(*STREAM, timeout=0.05):
            raise AssertionError("the block was entered")
    await client.close()


async def test_a_connector_that_hangs_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def hang() -> Client:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()
        raise AssertionError

    client = ReconnectingClient(hang, connect_timeout=0.05)
    with pytest.raises(ConnectionClosed, match="no connection within"):
        await client.call(*ECHO)
    assert cancelled.is_set()
    await client.close()


async def test_errors_of_the_server_are_not_a_reason_to_connect_again(target: Target) -> None:
    await target.start()
    async with ReconnectingClient(target.connect) as client:
        for _ in range(2):
            with pytest.raises(StatusError):
                await client.call("nope", "Nope")
        assert target.tries == 1
    await target.stop()


def after(delay: float, connect: Callable[[], Awaitable[Client]]) -> Callable[[], Awaitable[Client]]:
    async def connector() -> Client:
        await asyncio.sleep(delay)
        return await connect()

    return connector


async def test_close_while_connecting_leaves_no_connection(target: Target) -> None:
    await target.start()
    client = ReconnectingClient(after(0.05, target.connect))
    call = asyncio.ensure_future(client.call(*ECHO))
    await asyncio.sleep(0.01)
    await client.close()
    with pytest.raises(ConnectionClosed):
        await call
    assert target.tries == 1
    with pytest.raises(ConnectionClosed):
        await client.call(*ECHO)
    await target.stop()
