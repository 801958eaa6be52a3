"""A TCP-like byte stream over a streaming call: two directions that end separately, and flow control.

Both ends of the call run `relay` with a connection; each forwards the bytes of its connection to the other. ttrpc has
no flow control, so each end may send as many bytes as the other has granted: WINDOW to begin with, and again as many as
were passed on. Messages:

    0x00 data…          bytes of the stream; no data is the end of this direction
    0x01 number         this many more bytes may be sent; 32 bits, big-endian
"""

from __future__ import annotations

import asyncio
import socket
import struct

from kata.ttrpc.errors import LocalProtocolError, RemoteProtocolError
from kata.ttrpc.stream import Stream

#: Bytes in flight in one direction, at most.
WINDOW = 512 << 10
_PIECE = 128 << 10
_DATA, _GRANT = b"\0", b"\1"


async def relay(stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes between a call and a connection until both directions have ended, then close the connection.

    Args:
        stream: of the call.
        reader: of the connection.
        writer: of the connection, which is closed or reset at the end.

    Raises:
        StatusError, ConnectionClosed: the call failed.
        RemoteProtocolError: the other end sends more than was granted, or an invalid message.
        OSError: the connection was reset, here or at the other end.
    """
    try:
        await _Relay(stream, reader, writer).run()
    except BaseException:
        reset(writer)
        raise
    writer.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """Reset a connection, so that its peer does not take the end for a clean one."""
    transport = writer.transport
    if not transport.is_closing():
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class _Relay:
    def __init__(self, stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._stream = stream
        self._reader = reader
        self._writer = writer
        self._credit = WINDOW
        self._credited = asyncio.Event()
        self._granted = WINDOW
        self._arrived: asyncio.Queue[bytes] = asyncio.Queue()
        self._sent_all = self._got_all = False

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                listening = group.create_task(self._listen())
                ends = (group.create_task(self._send()), group.create_task(self._write()))
                await asyncio.wait(ends)
                listening.cancel()
        except BaseExceptionGroup as errors:
            # One end's failure is why the others were cancelled.
            raise errors.exceptions[0] from None

    async def _send(self) -> None:
        """From the connection into the call."""
        while data := await self._reader.read(_PIECE):
            while data:
                while not self._credit:
                    self._credited.clear()
                    await self._credited.wait()
                piece, data = data[: self._credit], data[self._credit :]
                self._credit -= len(piece)
                await self._stream.send(_DATA + piece)
        await self._stream.send(_DATA)
        self._sent_all = True

    async def _listen(self) -> None:
        """Take the call's messages as they come: a connection that takes no data must not keep grants from `_send`.

        Raises:
            RemoteProtocolError: a message is invalid, or carries more than was granted.
            ConnectionResetError: the call ends before both directions have.
        """
        while (message := await self._stream.receive()) is not None:
            kind, content = message[:1], message[1:]
            if kind == _DATA and len(content) <= self._granted and not self._got_all:
                self._granted -= len(content)
                self._got_all = not content
                self._arrived.put_nowait(content)
            elif kind == _GRANT and len(content) == 4 and (more := struct.unpack("!I", content)[0]) <= WINDOW:
                self._credit = min(self._credit + more, WINDOW)
                self._credited.set()
            else:
                raise RemoteProtocolError(f"invalid relay message {message[:8]!r} of {len(message)} bytes")
        if not (self._sent_all and self._got_all):
            raise ConnectionResetError("the other end closed the stream early")

    async def _write(self) -> None:
        """From the call into the connection."""
        while data := await self._arrived.get():
            self._writer.write(data)
            await self._writer.drain()
            self._granted += len(data)
            try:
                await self._stream.send(_GRANT + struct.pack("!I", len(data)))
            except LocalProtocolError:
                pass  # the other end has sent everything and closed the stream
        self._writer.write_eof()
