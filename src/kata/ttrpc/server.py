"""The asyncio server: listens, accepts, and answers calls through handlers.

    async def check(ctx: CallContext, payload: bytes) -> bytes: ...

    server = Server({("grpc.Health", "Check"): check})
    await server.serve_unix("/run/agent.sock")      # returns when it listens
    ...
    await server.close(grace=2)

Handlers deal in bytes; `kata.ttrpc.typed` makes them from a protobuf service. Each call is a task. It is
cancelled when its deadline passes (the caller gets DEADLINE_EXCEEDED) or its connection ends.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Collection

from kata.ttrpc.address import unix_address
from kata.ttrpc.channel import BUFFER_LIMIT, Channel
from kata.ttrpc.context import Handlers
from kata.ttrpc.errors import Code
from kata.ttrpc.frames import MAX_MESSAGE
from kata.ttrpc.observer import Observer
from kata.ttrpc.serving import ServerConnection, ServerLimits, ToStatus
from kata.ttrpc.stream import MAX_QUEUE

#: Calls in flight on one connection. Long polls count, so a pod with many processes needs hundreds.
MAX_CALLS = 1024

_BACKLOG = 128


def default_to_status(error: Exception) -> tuple[int, str]:
    """INTERNAL, with the exception's type and text."""
    return Code.INTERNAL, f"{type(error).__name__}: {error}"


class Server:
    """Serves any number of listening sockets and connections.

    Args:
        handlers: by full service name and method name; others are UNIMPLEMENTED. A plain value is a unary handler
            `async (ctx, payload) -> bytes`; a streaming one is wrapped in `StreamHandler`.
        to_status: returns code and text for a handler's exception other than StatusError.
        max_message: largest frame, in bytes.
        max_calls: calls in flight on one connection; more are answered with RESOURCE_EXHAUSTED.
        unlimited: names of services to which `max_calls` does not apply, such as a health check.
        max_queue: bytes that may wait in the queue of one stream, see `kata.ttrpc.stream`.

    Attributes:
        observers: told of each call for which there is a handler.
    """

    def __init__(
        self,
        handlers: Handlers,
        *,
        to_status: ToStatus = default_to_status,
        max_message: int = MAX_MESSAGE,
        max_calls: int = MAX_CALLS,
        unlimited: Collection[str] = (),
        max_queue: int = MAX_QUEUE,
    ) -> None:
        self.observers: list[Observer] = []
        self._limits = ServerLimits(
            handlers, to_status, max_message, max_calls, frozenset(unlimited), max_queue, self.observers
        )
        self._listeners: list[asyncio.Server] = []
        self._paths: dict[str, tuple[int, int] | None] = {}
        self._connections: set[ServerConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def serve_unix(self, path: str, *, mode: int = 0o600) -> None:
        """Listen on a Unix socket and return; "@name" is an abstract one.

        An existing socket file is replaced. It gets the permissions `mode` before anybody can connect. `close` removes
        it. Raises OSError.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            address = unix_address(path)
            if address == path:
                _remove_socket(path)
            sock.bind(address)
            if address == path:
                os.chmod(path, mode)
                self._paths[path] = _identity(path)
            await self.serve_socket(sock)
        except BaseException:
            sock.close()
            raise

    async def serve_socket(self, sock: socket.socket) -> None:
        """Take over a bound or listening stream socket of any family, and return. Raises OSError."""
        sock.setblocking(False)
        listener = await asyncio.start_server(self._accept, sock=sock, backlog=_BACKLOG, limit=BUFFER_LIMIT)
        self._listeners.append(listener)

    @property
    def connected(self) -> int:
        """Number of connections."""
        return len(self._connections)

    async def serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve an existing connection until the peer or `close` ends it. Errors of the connection are not raised.

        Args:
            reader: of the connection, e.g. of a serial port.
            writer: of the connection, which is closed at the end.
        """
        channel = Channel(reader, writer)
        if self._closing:
            await channel.close()
            return
        connection = ServerConnection(channel, self._limits)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    async def close(self, grace: float = 0) -> None:
        """Stop listening, refuse new calls, wait up to `grace` seconds for calls in flight, cancel the rest, close.

        Returns when all connections are closed and all handlers have ended, so it must not be awaited by a handler.
        Idempotent.
        """
        self._closing = True
        for listener in self._listeners:
            listener.close()
        for path, identity in self._paths.items():
            if identity is not None and _identity(path) == identity:
                os.unlink(path)
        self._listeners.clear()
        self._paths.clear()

        connections = list(self._connections)
        await asyncio.gather(*(connection.drain(grace) for connection in connections))
        for connection in connections:
            connection.stop()
        await asyncio.gather(*(connection.finished.wait() for connection in connections))
        if self._tasks:
            await asyncio.wait(self._tasks)  # connections that were accepted a moment ago

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self.serve_connection(reader, writer), name="ttrpc server connection")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _remove_socket(path: str) -> None:
    """Remove what an earlier server left; anything but a socket stays and makes bind fail."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
