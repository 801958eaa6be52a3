"""A kata-monitor with small sandboxes, on a port of the loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kata.monitor import http
from kata.monitor.app import Monitor
from tests.support.waiting import eventually_async


@dataclass(frozen=True)
class Answer:
    """An answer: its status, headers by their names in lower case, and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True)
class Served:
    """A kata-monitor that serves."""

    monitor: Monitor
    port: int
    server: asyncio.Task[None]

    async def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Make one request on a connection of its own."""
        given = {"Host": f"127.0.0.1:{self.port}", "Connection": "close"}
        given.update({name.replace("_", "-"): value for name, value in headers.items()})
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        return parsed(await self.raw(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode()))

    async def raw(self, data: bytes) -> bytes:
        """What the server sends after these bytes until it closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            async with asyncio.timeout(30):
                return await reader.read()
        finally:
            writer.transport.abort()


def parsed(data: bytes) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        rest, body = body, b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
    return Answer(int(first.split()[1]), headers, body)


Serve = Callable[[Path], Awaitable[Served]]


@asynccontextmanager
async def serving(root: Path) -> AsyncIterator[Served]:
    monitor = Monitor(root)
    listener = http.listen("127.0.0.1:0")
    following = asyncio.create_task(monitor.sandboxes.run())
    server = asyncio.create_task(http.serve(monitor.app, listener))
    try:
        yield Served(monitor, listener.getsockname()[1], server)
    finally:
        for task in (server, following):
            task.cancel()
        await asyncio.gather(server, following, return_exceptions=True)
        listener.close()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A kata-monitor for the sandboxes beneath the test's directory."""
    async with serving(tmp_path) as found:
        yield found


async def known(served: Served, *names: str) -> None:
    """Wait until the sandboxes of these names, and no others, have told of themselves."""
    await eventually_async(
        lambda: sorted(name for name, one in served.monitor.sandboxes.all.items() if one.described),
        "sandboxes that have told of themselves",
        lambda seen: seen == sorted(names) and len(served.monitor.sandboxes.all) == len(names),
    )
