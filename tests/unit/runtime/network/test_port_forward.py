"""Port-forward's host side, with an agent in this process that connects on this host."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kata.agent.forward import connect
from kata.protocols import forward
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.network import port_forward as sandbox_forward
from kata.runtime.network.port_forward import PortForward
from kata.ttrpc import Client, Server, StreamHandler
from tests.support.waiting import eventually_async

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def agent() -> AsyncIterator[AgentClient]:
    server = Server({(forward.SERVICE, forward.CONNECT): StreamHandler(connect)})
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(server.serve_connection(*await asyncio.open_connection(sock=theirs)))
    client = AgentClient(await Client.from_socket(ours))
    yield client
    await client.close()
    await serving


class Steered(PortForward):
    """Takes its own listener's connections for ones to `port`: there is no steering within one namespace."""

    port = 0

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport = writer.transport
        given = transport.get_extra_info
        transport.get_extra_info = lambda name, default=None: (  # type: ignore[method-assign]
            ("::ffff:127.0.0.1", self.port) if name == "sockname" else given(name, default)
        )
        super()._accepted(reader, writer)


@pytest.fixture
async def forwarding(agent: AgentClient) -> AsyncIterator[Steered]:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    steered = Steered(agent, listener, os.open("/dev/null", os.O_RDONLY))
    await steered.start()
    yield steered
    await steered.close()


@asynccontextmanager
async def dialled(forwarding: PortForward) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", forwarding._own)
    yield reader, writer
    writer.close()


async def test_a_connection_reaches_the_port_that_was_meant(forwarding: Steered) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        forwarding.port = server.sockets[0].getsockname()[1]
        async with dialled(forwarding) as (reader, writer):
            writer.write(b"there and back")
            writer.write_eof()
            assert await reader.read() == b"there and back"


async def test_a_port_where_nobody_listens_ends_the_connection(
    forwarding: Steered, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", sandbox_forward.__name__)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        forwarding.port = free.getsockname()[1]
        async with dialled(forwarding) as (reader, _):
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
    assert f"port {forwarding.port} of 127.0.0.1" in caplog.text
    assert "refused" in caplog.text


async def test_the_listeners_own_port_and_one_too_many_are_refused(
    forwarding: Steered, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwarding.port = forwarding._own
    async with dialled(forwarding) as (reader, _):
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
    forwarding.port = 1
    monkeypatch.setattr(sandbox_forward, "MAX_CONNECTIONS", 0)
    async with dialled(forwarding) as (reader, _):
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)


async def test_closing_cuts_connections_off(forwarding: Steered) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        forwarding.port = server.sockets[0].getsockname()[1]
        async with dialled(forwarding) as (reader, _):
            await eventually_async(lambda: forwarding._connections, "a connection")
            await forwarding.close()
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
