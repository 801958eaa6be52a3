"""Servers, clients and raw peers for the tests of kata.ttrpc."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kata.ttrpc import Client, Handlers, Server


def new_tasks(before: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    """Tasks that run now and did not then."""
    return asyncio.all_tasks() - before - {asyncio.current_task()}


Connected = Callable[..., Awaitable[tuple[Server, Client]]]


@pytest.fixture
async def connected(tmp_path: Path) -> AsyncIterator[Connected]:
    """Makes a server with the given handlers and a client of it. In the end no task of theirs is left."""
    before = asyncio.all_tasks()
    made: list[tuple[Server, Client]] = []

    async def make(handlers: Handlers, **options: Any) -> tuple[Server, Client]:
        path = str(tmp_path / f"{len(made)}.sock")
        server = Server(handlers, **options)
        await server.serve_unix(path)
        client = await Client.connect_unix(path)
        made.append((server, client))
        return server, client

    yield make
    for server, client in made:
        await client.close()
        await server.close()
    assert new_tasks(before) == set()
    assert list(tmp_path.glob("*.sock")) == []


class Peer:
    """The other end of a socket, for writing what no proper peer would."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def receive(self, size: int) -> bytes:
        data = b""
        async with asyncio.timeout(60):
            while len(data) < size and (chunk := await self._loop.sock_recv(self.sock, size - len(data))):
                data += chunk
        return data

    async def frame(self) -> tuple[int, int, int, bytes]:
        """Stream id, type, flags and data of the next frame; zeros and b"" at the end."""
        header = await self.receive(10)
        if not header:
            return 0, 0, 0, b""
        data = await self.receive(int.from_bytes(header[:4], "big"))
        return int.from_bytes(header[4:8], "big"), header[8], header[9], data


@pytest.fixture
async def raw_server() -> AsyncIterator[tuple[Client, Peer]]:
    """A client whose server is the test."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    client = await Client.from_socket(ours)
    with theirs:
        yield client, Peer(theirs)
        await client.close()


RawClient = Callable[..., Awaitable[tuple[Server, Peer]]]


@pytest.fixture
async def raw_client() -> AsyncIterator[RawClient]:
    """Makes a server whose client is the test."""
    before = asyncio.all_tasks()
    made: list[tuple[Server, Peer, asyncio.Task[None]]] = []

    async def make(handlers: Handlers, **options: Any) -> tuple[Server, Peer]:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        server = Server(handlers, **options)
        reader, writer = await asyncio.open_connection(sock=ours)
        task = asyncio.create_task(server.serve_connection(reader, writer))
        made.append((server, Peer(theirs), task))
        return server, made[-1][1]

    yield make
    for server, peer, task in made:
        await server.close()
        await task
        peer.sock.close()
    assert new_tasks(before) == set()
