"""Small management sockets that answer what a test wants: many at once, and such as no real sandbox would be.

What they answer by default has the size and the names of a real one's.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from kata.agent.metrics import Metrics
from kata.management.protocol import SOCKET
from kata.management.server import TEXT, Request, Response, serve
from kata.metrics.exposition import Family, write
from kata.metrics.table import SANDBOX

#: What real sandboxes have besides the guest's.
_ITEMS = tuple(f"item{number}" for number in range(16))


def metrics_text() -> str:
    """A sandbox's metrics: all families, with about as many samples as a real one's."""
    families = []
    for name, metric in SANDBOX.items():
        family = Family(name, metric.kind, metric.text)
        if metric.kind == "histogram":
            for action in ("create", "start", "state"):
                for end in (*(str(1 << power) for power in range(10)), "+Inf"):
                    family.add(3, {"action": action, "le": end}, "_bucket")
                family.add(12.5, {"action": action}, "_sum")
                family.add(3, {"action": action}, "_count")
        elif metric.labels:
            for item in _ITEMS:
                family.add(7, {**dict.fromkeys(metric.labels, "eth0"), "item": item})
        else:
            family.add(1)
        families.append(family)
    return write(families) + Metrics().render()


class FakeSandbox:
    """One that answers on its socket. An asynchronous context manager.

    Args:
        root: of state directories.
        name: of its own.
        metrics: what it answers to a scrape.

    Attributes:
        described, stats: its answers; tests change them.
        delay: seconds before every answer.
        cpu_percent: of one CPU, what its VMM takes.
        console: what its guest has written.
    """

    def __init__(self, root: Path, name: str, *, metrics: str = "", delay: float = 0.0) -> None:
        self.directory = root / name
        self.metrics = metrics
        self.delay = delay
        self.cpu_percent = 0.0
        self.console = "guest: booted\n"
        self.described: dict[str, Any] = {
            "id": name.partition("@")[0],
            "engine": "cri",
            "state": "running",
            "why_ended": "",
            "pid": 1,
            "vm": {"pid": 2, "accelerator": "tcg", "vcpus": 1, "memory_mib": 512},
            "pod": {"name": f"pod-{name.partition('@')[0]}", "namespace": "default", "uid": "1234"},
            "containers": [{"id": name.partition("@")[0], "name": "app", "state": "running", "exit_status": None}],
        }
        self.stats: dict[str, Any] = {
            "containers": {
                name.partition("@")[0]: {
                    "cpu_ns": 0,
                    "memory_bytes": 4 << 20,
                    "memory_limit_bytes": None,
                    "pids": 1,
                }
            },
            "network": {"eth0": {"rx_bytes": 0, "tx_bytes": 0, "rx_packets": 0, "tx_packets": 0}},
            "vm": {"cpu_ns": 0, "memory_bytes": 90 << 20, "vcpus": 1, "memory_size_bytes": 512 << 20},
        }
        self._began = time.monotonic()
        self._listeners: set[asyncio.Queue[bytes | None]] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> FakeSandbox:
        self.directory.mkdir(parents=True)
        # As the real server: a task for each connection, ended by `close`.
        self._server = await asyncio.start_unix_server(self._serve, self.directory / SOCKET)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, *, leave: bool = False) -> None:
        """End it; with `leave`, as if it had been killed: its directory stays."""
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if leave:
            # Since Python 3.13 the server removes the socket file, which a process that is killed leaves.
            (self.directory / SOCKET).unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as nobody:
                nobody.bind(str(self.directory / SOCKET))
        elif self.directory.exists():
            for path in self.directory.iterdir():
                path.unlink()
            self.directory.rmdir()

    def tell(self, what: str, **detail: Any) -> None:
        """Something has happened in it."""
        event = {"time": time.time(), "type": what, "container": self.described["id"], "detail": detail}
        for queue in self._listeners:
            queue.put_nowait(b"data: " + json.dumps(event).encode() + b"\n\n")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            routes = {
                "/metrics": self._metrics,
                "/sandbox": self._sandbox,
                "/stats": self._stats,
                "/events": self._events,
                "/console": self._console,
                "/agent-url": self._agent_url,
            }
            await serve(reader, writer, {path: {"GET": handler} for path, handler in routes.items()})
        except asyncio.CancelledError:
            pass  # by `close`
        finally:
            self._connections.discard(task)

    async def _metrics(self, request: Request) -> Response:
        await asyncio.sleep(self.delay)
        return Response(self.metrics.encode(), TEXT)

    async def _sandbox(self, request: Request) -> Response:
        await asyncio.sleep(self.delay)
        return Response.of(self.described)

    async def _stats(self, request: Request) -> Response:
        await asyncio.sleep(self.delay)
        cpu_ns = int((time.monotonic() - self._began) * self.cpu_percent * 1e7)
        return Response.of({"time": time.time(), **self.stats, "vm": {**self.stats["vm"], "cpu_ns": cpu_ns}})

    async def _console(self, request: Request) -> Response:
        return Response(self.console.encode(), TEXT)

    async def _agent_url(self, request: Request) -> Response:
        return Response(f"unix://{self.directory}/agent.sock".encode(), TEXT)

    async def _events(self, request: Request) -> Response:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._listeners.add(queue)
        return Response(self._told(queue), "text/event-stream")

    async def _told(self, queue: asyncio.Queue[bytes | None]) -> AsyncGenerator[bytes, None]:
        try:
            yield b":\n\n"
            while (message := await queue.get()) is not None:
                yield message
        finally:
            self._listeners.discard(queue)
