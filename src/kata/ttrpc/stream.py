"""A streaming call as its two ends see it: send messages, iterate over messages.

ttrpc has no flow control and cannot stop a sender. All streams of a connection share one byte stream, so not reading
because of one slow stream would stop all others. Therefore each stream has a bounded queue; when that is full, only
this stream ends, with RESOURCE_EXHAUSTED. A protocol that moves more than the bound at a time needs credits that the
receiver grants to the sender.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from kata.ttrpc.channel import Channel
from kata.ttrpc.connection import Connection
from kata.ttrpc.errors import ConnectionClosed, LocalProtocolError, TtrpcError

#: Bytes that may wait in a stream's queue. One message always fits.
MAX_QUEUE = 4 << 20

#: Bytes that a message counts for besides its own; without them, empty messages would be free.
_OVERHEAD = 128


class Inbox:
    """Messages that have arrived and were not read yet, then the end."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._messages: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self.error: TtrpcError | None = None
        self._changed = asyncio.Event()

    def put(self, message: bytes) -> bool:
        """Add a message; False if it does not fit."""
        cost = len(message) + _OVERHEAD
        if self._messages and self._size + cost > self._limit:
            return False
        self._messages.append(message)
        self._size += cost
        self._changed.set()
        return True

    def end(self, error: TtrpcError | None = None) -> None:
        """No more messages follow; the receiver gets `error` after those in the queue. The first end counts."""
        if not self._ended:
            self._ended = True
            self.error = error
            self._changed.set()

    async def get(self) -> bytes | None:
        """The next message, or None at the end.

        Raises:
            TtrpcError: the error that `end` was given.
        """
        while not self._messages:
            if self.error is not None:
                raise self.error
            if self._ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        message = self._messages.popleft()
        self._size -= len(message) + _OVERHEAD
        return message


class Stream:
    """One end of a streaming call: `async for message in stream`, `await stream.send(message)`."""

    def __init__(self, stream_id: int, core: Connection, channel: Channel, max_queue: int) -> None:
        self.inbox = Inbox(max_queue)
        self._id = stream_id
        self._core = core
        self._channel = channel

    async def send(self, message: bytes) -> None:
        """Send a message; returns when the connection has room for more.

        Raises:
            StatusError: the call has failed.
            LocalProtocolError: the call has ended well, or was closed for sending.
            MessageTooLarge: nothing was sent.
            ConnectionClosed
        """
        try:
            await self._send(lambda: self._core.send_data(self._id, message))
        except LocalProtocolError:
            if self.inbox.error is None:
                raise
            raise self.inbox.error from None

    async def receive(self) -> bytes | None:
        """The next message, or None at the end.

        Raises:
            StatusError: the call failed.
            ConnectionClosed
        """
        return await self.inbox.get()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        message = await self.inbox.get()
        if message is None:
            raise StopAsyncIteration
        return message

    async def _send(self, frame: Callable[[], bytes]) -> None:
        try:
            async with self._channel.turn:
                # Made in turn, because the stream may end while waiting for it.
                self._channel.post(frame())
                await self._channel.drained()
        except OSError as error:
            raise ConnectionClosed(error) from error


class ClientStream(Stream):
    """The caller's end. Made by `Client.stream`."""

    def __init__(self, stream_id: int, core: Connection, channel: Channel, max_queue: int) -> None:
        super().__init__(stream_id, core, channel, max_queue)
        self.final = b""

    async def close_send(self) -> None:
        """Tell the server that no more messages follow. Idempotent, also when the call has ended."""
        try:
            await self._send(lambda: self._core.close_send(self._id))
        except LocalProtocolError:
            pass

    async def result(self) -> bytes:
        """Close for sending, wait for the end, and return the final response's payload.

        That is the answer to a client-streaming call; a server-streaming call ends without one (b""). Messages that
        were not read are lost.

        Raises:
            StatusError: the call failed.
            ConnectionClosed
        """
        await self.close_send()
        async for _ in self:
            pass
        return self.final
