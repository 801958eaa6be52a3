"""The asyncio side that client and server share: chunks in, whole frames out in turn, an end within a deadline."""

from __future__ import annotations

import asyncio

# asyncio never reads more than this at once.
_CHUNK = 256 << 10

#: Buffer limit to give to asyncio's stream functions: its default of 64 KiB stops and restarts reading for every chunk.
STREAM_LIMIT = _CHUNK


class Channel:
    """Owns one StreamReader and StreamWriter.

    `turn` is held by whoever writes and waits until the peer has taken enough of it. Frames come out in the order of
    the turns, and what is buffered for a slow peer stays at about one frame, however many senders there are.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.turn = asyncio.Lock()

    async def read(self) -> bytes:
        """Some bytes; b"" at the end. Raises OSError."""
        return await self._reader.read(_CHUNK)

    def post(self, frame: bytes, tail: bytes = b"") -> None:
        """Write without waiting: for the turn's holder, and for small frames that must not wait."""
        self._writer.write(frame)
        if tail:
            self._writer.write(tail)

    async def drained(self) -> None:
        """Wait until the peer has taken enough. Raises OSError if the connection is gone."""
        await self._writer.drain()

    async def send(self, frame: bytes) -> None:
        """Write in turn and wait. Raises OSError. If cancelled while waiting for the peer, the frame is still whole."""
        async with self.turn:
            self.post(frame)
            await self.drained()

    async def close(self, flush: float = 0) -> None:
        """Close, giving the peer `flush` seconds to take what is buffered. Whatever the peer does, this succeeds."""
        # A task, because cancelling wait_closed itself would cancel it for all who wait.
        closed = asyncio.ensure_future(self._writer.wait_closed())
        closed.add_done_callback(_ignore_outcome)
        try:
            if flush:
                self._writer.close()
                await asyncio.wait([closed], timeout=flush)
        finally:
            self._writer.transport.abort()
        await asyncio.wait([closed])

    @property
    def peer(self) -> object:
        """The socket, or whatever the transport has instead."""
        return self._writer.get_extra_info("socket")


def _ignore_outcome(task: asyncio.Future[None]) -> None:
    if not task.cancelled():
        task.exception()
