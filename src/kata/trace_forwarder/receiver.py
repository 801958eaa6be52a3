"""Frames in: on Unix sockets, as the VMM of hybrid vsock connects to them, and on vsock.

Whoever connects may be a guest, which is hostile: a connection that breaks the rules is closed, and the others go on.
Frame: `kata.protocols.traces`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import stat
import time
from collections.abc import Callable

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from kata.errors import AlreadyExists, FailedPrecondition
from kata.protocols.traces import HEADER, MAX_PAYLOAD

log = logging.getLogger(__name__)

#: Connections at a time, and bytes of all frames that have been announced and not arrived yet.
MAX_CONNECTIONS = 512
_MAX_ANNOUNCED = 32 << 20
#: Seconds for a frame to arrive, once it has begun.
FRAME_TIMEOUT_S = 30.0
#: Frames of a connection that are no spans, before it is closed.
_MAX_GARBAGE = 16
_BACKLOG = 128
#: Seconds between two messages about what is dropped: a guest may send it for ever.
REPORT_S = 10.0

Take = Callable[[ExportTraceServiceRequest], None]


class Receiver:
    """Serves any number of listening sockets.

    Args:
        take: called with the spans of each frame.
        frame_timeout_s: seconds for a frame to arrive.

    Attributes:
        refused: frames and connections that broke the rules.
    """

    def __init__(self, take: Take, frame_timeout_s: float = FRAME_TIMEOUT_S) -> None:
        self.refused = 0
        self._take = take
        self._frame_timeout_s = frame_timeout_s
        self._announced = 0
        self._told = 0
        self._reported = -math.inf
        self._servers: list[asyncio.Server] = []
        self._paths: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen_unix(self, path: str) -> None:
        """Listen on a Unix socket, which only its owner can connect to. One that nobody serves is replaced.

        Raises:
            AlreadyExists: somebody serves it.
            FailedPrecondition: it cannot be made.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            _remove_dead(path)
            listener.bind(path)
            self._paths.append(path)
            await self._serve(listener)
        except OSError as error:
            listener.close()
            raise FailedPrecondition(f"cannot listen on {path}: {(error.strerror or str(error)).lower()}") from error
        except BaseException:
            listener.close()
            raise
        finally:
            os.umask(mask)

    async def listen_vsock(self, cid: int, port: int) -> None:
        """Listen on vsock, where every guest of this host can connect.

        Raises:
            FailedPrecondition: this host has none, or the port is taken.
        """
        listener = None
        try:
            listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            listener.bind((cid, port))
            await self._serve(listener)
        except OSError as error:
            if listener:
                listener.close()
            raise FailedPrecondition(
                f"cannot listen on vsock port {port}: {(error.strerror or str(error)).lower()}",
                hint="vsock needs the kernel module vhost_vsock; sandboxes of pykata need none: use --socket-path",
            ) from error

    async def close(self) -> None:
        """Stop listening, close all connections, and say how many frames and connections were dropped."""
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for path in self._paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        if self.refused > self._told:
            log.warning("dropped: %d frames and connections in all", self.refused)

    async def _serve(self, listener: socket.socket) -> None:
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        self._servers.append(await asyncio.start_server(self._accept, sock=listener))

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= MAX_CONNECTIONS:
            self._refuse(f"more than {MAX_CONNECTIONS} connections")
            writer.close()
            return
        task = asyncio.create_task(self._read(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        garbage = 0
        try:
            while (payload := await self._frame(reader)) is not None:
                try:
                    self._take(ExportTraceServiceRequest.FromString(payload))
                except DecodeError:
                    garbage += 1
                    self._refuse("a frame without spans")
                    if garbage >= _MAX_GARBAGE:
                        return
        except OSError as error:
            log.debug("connection lost: %s", error)
        finally:
            writer.close()

    async def _frame(self, reader: asyncio.StreamReader) -> bytes | None:
        """The payload of the next frame; None at the end of the connection, or where it has to be closed."""
        first = await reader.read(1)
        if not first:
            return None
        length = 0
        try:
            async with asyncio.timeout(self._frame_timeout_s):
                (length,) = HEADER.unpack(first + await reader.readexactly(HEADER.size - 1))
                if length > MAX_PAYLOAD or self._announced + length > _MAX_ANNOUNCED:
                    self._refuse(f"a frame of {length} bytes; the maximum is {MAX_PAYLOAD}")
                    length = 0
                    return None
                self._announced += length
                return await reader.readexactly(length)
        except asyncio.IncompleteReadError as error:
            self._refuse(f"a connection that ended within a frame, {len(error.partial)} bytes into its {length}")
        except TimeoutError:
            self._refuse(f"a frame of which not all came within {self._frame_timeout_s:g} s")
        finally:
            self._announced -= length
        return None

    def _refuse(self, what: str) -> None:
        self.refused += 1
        if time.monotonic() - self._reported >= REPORT_S:
            more = self.refused - self._told - 1
            log.warning("dropped: %s%s", what, f", and {more} others before it" if more else "")
            self._reported, self._told = time.monotonic(), self.refused


def _remove_dead(path: str) -> None:
    """Remove a socket that nobody serves; anything else stays, and cannot be bound to.

    Raises:
        AlreadyExists: somebody serves it.
        OSError: it cannot be removed.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise AlreadyExists(f"another process listens on {path}", hint="end it, or name another path with --socket-path")
