"""The asyncio side that client and server share: chunks in, whole frames out, closed within a deadline."""

from __future__ import annotations

import asyncio

# asyncio never reads more than this at once.
_CHUNK = 256 << 10

#: Buffer limit for asyncio's stream functions: with its default of 64 KiB reading is paused and resumed for each chunk.
BUFFER_LIMIT = _CHUNK


class Channel:
    """Owns one StreamReader and StreamWriter.

    A sender holds the lock `turn` while it writes and waits until the peer has taken enough. Frames are sent in the
    order in which the lock was acquired, and the buffer for a slow peer stays at about one frame, however many senders
    there are.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.turn = asyncio.Lock()

    async def read(self) -> bytes:
        """Some bytes; b"" at the end. Raises OSError."""
        return await self._reader.read(_CHUNK)

    def post(self, frame: bytes, tail: bytes = b"") -> None:
        """Write without waiting: for the holder of `turn`, and for small frames that must not wait."""
        self._writer.write(frame)
        if tail:
            self._writer.write(tail)

    async def drained(self) -> None:
        """Wait until the peer has taken enough. Raises OSError if the connection is gone."""
        await self._writer.drain()

    async def send(self, frame: bytes) -> None:
        """Write when it is this sender's turn, and wait. Cancelling the wait does not cut the frame. Raises OSError."""
        async with self.turn:
            self.post(frame)
            await self.drained()

    async def close(self, flush: float = 0) -> None:
        """Close, giving the peer `flush` seconds to read what is buffered. Never fails."""
        # A task, because cancelling wait_closed itself would cancel it for all waiters.
        closed = asyncio.ensure_future(self._writer.wait_closed())
        closed.add_done_callback(_ignore_outcome)
        try:
            if flush:
                self._writer.close()
                await asyncio.wait([closed], timeout=flush)
        finally:
            # A transport that has flushed its buffer and is closed by itself takes no abort (Python 3.11).
            if not closed.done():
                self._writer.transport.abort()
        await asyncio.wait([closed])

    @property
    def peer(self) -> object:
        """The socket, or whatever the transport has instead."""
        return self._writer.get_extra_info("socket")


def _ignore_outcome(task: asyncio.Future[None]) -> None:
    if not task.cancelled():
        task.exception()
