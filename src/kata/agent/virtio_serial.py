"""A virtio-serial port as a sequence of asyncio connections.

The guest opens a port once; the host connects and disconnects. Without a host the port polls as readable and hung up
for ever and reads as end of file, so a plain `add_reader` would spin a vCPU. The driver wakes its pollers when the
host connects, sends or disconnects (drivers/char/virtio_console.c), so the port is edge-triggered in an epoll of its
own, and the event loop watches that epoll.

Data in the queue when the host disconnects is lost; the protocol above must not take a write for a delivery. A host
that reconnects at once is not noticed, which `kata.agent.connections` makes up for. And a host's first bytes may be
read before the driver, which handles the control queue in a thread, knows of the host: until then the port reads as
end of file after them.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from kata.agent.connections import Piece, Splitter
from kata.errors import NotFound

_PORTS = Path("/sys/class/virtio-ports")
#: Bytes of one write; the driver copies 32 KiB at a time, but fewer calls into Python matter more.
_CHUNK = 256 * 1024
#: The driver receives into pages, and a read returns one: readv(2) reads that many at once.
_PAGE = 4096
_PAGES = 16 * _PAGE
_HIGH_WATER = 1024 * 1024
_POLL_S = 0.02
#: After a pause of this length the next byte is the first of a frame: hosts write whole frames.
_SILENCE_S = 0.2

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def find_port(name: str, timeout: float) -> str:
    """The device node of the port called `name`.

    Blocks while the driver is still finding the ports, so it may be called only before the agent serves anybody.

    Raises:
        NotFound: no such port appeared in `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        seen = []
        for port in sorted(_PORTS.glob("*")):
            try:
                label = (port / "name").read_text().strip()
            except FileNotFoundError:
                continue
            if label == name and os.path.exists(f"/dev/{port.name}"):
                return f"/dev/{port.name}"
            seen.append(label)
        if time.monotonic() > deadline:
            raise NotFound(f"virtio-serial port {name} not found (ports: {', '.join(seen) or 'none'})")
        time.sleep(_POLL_S)


class VirtioSerialPort:
    """Serves the host's connections on one port, one after the other, until it is closed.

    Args:
        path: the device node.
        serve: called with reader and writer of each new connection. When it returns, input is dropped until the host
            disconnects or pauses: the middle of a connection must not be taken for the beginning of one.
        framed: whether the bytes are ttrpc's, so that connections can be told apart. Otherwise a connection begins as
            soon as the host is there, for it may wait for the guest to write first.

    Raises:
        OSError: the port cannot be opened.
    """

    def __init__(self, path: str, serve: Serve, *, framed: bool = True) -> None:
        self._serve = serve
        self._framed = framed
        self._loop = asyncio.get_running_loop()
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        self._epoll = select.epoll()
        self._epoll.register(self.fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLHUP | select.EPOLLET)
        self._transport: _PortTransport | None = None
        self._task: asyncio.Task[None] | None = None
        self._splitter = Splitter()
        self._space = memoryview(bytearray(_PAGES))
        self._pages = [self._space[start : start + _PAGE] for start in range(0, _PAGES, _PAGE)]
        self._discard_until = 0.0
        # Whether the driver knows of the host that is connected.
        self._announced = False
        self._loop.add_reader(self._epoll.fileno(), self._on_event)

    def close(self) -> None:
        """Close the port; the current connection ends."""
        if self.fd < 0:
            return
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        if self._transport:
            self._transport.drop(None)
        os.close(self.fd)
        self.fd = -1

    def _on_event(self) -> None:
        self._epoll.poll(0)
        if self._transport:
            self._transport.flush()
        self.pump()

    def pump(self) -> None:
        """Read until the port is empty, the host has disconnected, or the connection pauses reading."""
        while self.fd >= 0 and not (self._transport and self._transport.paused):
            try:
                data = self._receive()
            except BlockingIOError:
                self._announced = True
                if not (self._framed or self._transport) and self._loop.time() >= self._discard_until:
                    self._connect()
                return
            except OSError as error:
                self._lost(error)
                return
            if not data:
                self._end_of_file()
                return
            self._deliver(data)

    def _receive(self) -> bytes:
        """Read at most _PAGES bytes; b"" if the host has disconnected. Raises BlockingIOError: there are none."""
        count = os.readv(self.fd, self._pages)
        return bytes(self._space[:count])

    def _deliver(self, data: bytes) -> None:
        now = self._loop.time()
        if self._transport is None and now < self._discard_until:
            self._discard_until = now + _SILENCE_S
            return
        for piece in self._splitter.feed(data) if self._framed else (Piece(data, False),):
            if piece.begins and self._transport:
                self._transport.drop(None)
            if self._transport is None:
                self._connect()
            if self._transport:
                self._transport.deliver(piece.data)

    def _connect(self) -> None:
        reader = asyncio.StreamReader(limit=_HIGH_WATER, loop=self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=self._loop)
        self._transport = _PortTransport(self, protocol)
        writer = asyncio.StreamWriter(self._transport, protocol, reader, self._loop)
        self._task = self._loop.create_task(self._run(reader, writer))

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        finally:
            writer.close()

    def _end_of_file(self) -> None:
        """No host, as far as the driver knows. A connection of a host that it does not know yet stays."""
        if self._announced or self._transport is None:
            self._lost(None)

    def _lost(self, error: OSError | None) -> None:
        if self._transport:
            self._transport.drop(error)
        self._splitter = Splitter()
        self._discard_until = 0.0
        self._announced = False

    def released(self, *, by_host: bool) -> None:
        """The current connection is over; if this side ended it, pending input is dropped."""
        self._transport = None
        if not by_host:
            self._splitter = Splitter()
            self._discard_until = self._loop.time() + _SILENCE_S
            self._loop.call_soon(self.pump)


class _PortTransport(asyncio.Transport):
    """One connection: the part of asyncio's transport interface that its streams need."""

    def __init__(self, port: VirtioSerialPort, protocol: asyncio.StreamReaderProtocol) -> None:
        super().__init__()
        self._port = port
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._pending = bytearray()
        self._blocked = False
        self._closing = False
        self._over = False
        self.paused = False
        protocol.connection_made(self)

    def deliver(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        if self.paused:
            self.paused = False
            # Edge-triggered: what arrived during the pause will not be announced again.
            self._loop.call_soon(self._port.pump)

    def is_reading(self) -> bool:
        return not self.paused

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing:
            return
        if not self._pending:
            # Straight from the caller's buffer: in an emulated guest each copy of a megabyte takes milliseconds.
            with memoryview(data) as view:
                written = self._write(view)
                if written == len(view):
                    return
                data = bytes(view[written:])
        self._pending += data
        self._limit()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return len(self._pending)

    def flush(self) -> None:
        """Write what the port takes; the rest is written at the next event."""
        if self._pending:
            with memoryview(self._pending) as view:
                written = self._write(view)
            del self._pending[:written]
            self._limit()
        if self._closing and not self._pending:
            self._finish(None, by_host=False)

    def _write(self, view: memoryview) -> int:
        """How much of `view` the port took."""
        written = 0
        try:
            while written < len(view):
                written += os.write(self._port.fd, view[written : written + _CHUNK])
        except BlockingIOError:
            pass
        except OSError as error:
            self.drop(error)
        return written

    def _limit(self) -> None:
        """Pause or resume the writers."""
        if not self._blocked and len(self._pending) > _HIGH_WATER:
            self._blocked = True
            self._protocol.pause_writing()
        elif self._blocked and len(self._pending) < _HIGH_WATER // 4:
            self._blocked = False
            self._protocol.resume_writing()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self.flush()

    def abort(self) -> None:
        self._closing = True
        self._finish(None, by_host=False)

    def drop(self, error: OSError | None) -> None:
        """The host has disconnected: nothing more can be delivered."""
        self._closing = True
        self._finish(error, by_host=True)

    def _finish(self, error: OSError | None, *, by_host: bool) -> None:
        if self._over:
            return
        self._over = True
        self._pending.clear()
        self._port.released(by_host=by_host)
        self._loop.call_soon(self._protocol.connection_lost, error)
