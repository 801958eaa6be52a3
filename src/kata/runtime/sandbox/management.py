"""The socket on which a running sandbox answers commands of its host: HTTP, with the paths of `routes`.

Few sandboxes are ever asked anything: HTTP and whatever answers is imported with the first connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from kata.management.protocol import ADDRESS_FILE, SOCKET

if TYPE_CHECKING:
    from kata.management.server import Routes

log = logging.getLogger(__name__)

#: Connections that are served at a time, and those that wait until one of these ends.
MAX_SERVED = 64
MAX_WAITING = 448
_BACKLOG = 128
#: Seconds to wait for that.
_WAIT_TIMEOUT_S = 30.0
#: Bytes that asyncio reads ahead of one connection, at most twice.
_BUFFER_LIMIT = 16 << 10
#: Seconds for requests in flight to be answered when the sandbox stops.
_GRACE_S = 2.0
#: Seconds until connections are accepted again, if that failed: the process has too many descriptors.
_RETRY_S = 0.5


class Management:
    """The server of one sandbox.

    Args:
        directory: the sandbox's state directory.
        routes: gives what is answered, once there is somebody to answer; what it opens it pushes onto the stack.
    """

    def __init__(self, directory: str, routes: Callable[[AsyncExitStack], Routes]) -> None:
        self._path = os.path.join(directory, SOCKET)
        self._make_routes = routes
        self._routes: Routes | None = None
        self._opened = AsyncExitStack()
        self._slots = asyncio.Semaphore(MAX_SERVED)
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()

    def serve(self, bundle: str) -> None:
        """Begin to listen, and tell Kata's tools where in the bundle's directory. Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(self._path)
            # Nobody can connect before it listens.
            os.chmod(self._path, 0o600)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener), name="management socket")
        try:
            with open(os.path.join(bundle, ADDRESS_FILE), "w", encoding="utf-8") as file:
                file.write(f"unix://{self._path}")
        except OSError as error:
            log.info("%s is not written to the bundle: %s", ADDRESS_FILE, error.strerror)

    async def close(self) -> None:
        """Stop listening, let what is being answered end, and give back what was opened for it. Idempotent."""
        if self._accepting is not None and self._listener is not None:
            self._accepting.cancel()
            await asyncio.wait({self._accepting})
            self._listener.close()
            os.unlink(self._path)
            self._accepting = self._listener = None
        if self._connections:
            await asyncio.wait(self._connections, timeout=_GRACE_S)
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._opened.aclose()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("management socket: %s", error.strerror)
                await asyncio.sleep(_RETRY_S)
                continue
            if len(self._connections) >= MAX_SERVED + MAX_WAITING:
                client.close()
                continue
            task = loop.create_task(self._serve(client), name="management connection")
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _serve(self, client: socket.socket) -> None:
        try:
            # What waits has no buffers here: its request stays in the kernel.
            async with asyncio.timeout(_WAIT_TIMEOUT_S):
                await self._slots.acquire()
        except BaseException as error:
            client.close()
            if isinstance(error, TimeoutError):
                return
            raise
        try:
            from kata.management.server import serve

            reader, writer = await asyncio.open_connection(sock=client, limit=_BUFFER_LIMIT)
            if self._routes is None:
                self._routes = self._make_routes(self._opened)
            await serve(reader, writer, self._routes)
        except Exception:
            log.exception("management connection")
            client.close()
        finally:
            self._slots.release()
