"""What a handler is told about its call besides the payload, and the types of handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kata.ttrpc.stream import Stream


class PeerCredentials(NamedTuple):
    """Who connected to a Unix socket, as the kernel says (unix(7), SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


class CallContext:
    """One call.

    Attributes:
        service, method: what was called.
        metadata: the caller's metadata; of a key that occurs several times, the first value.
        timeout: seconds that the caller waits, from the moment of the call; None for no limit.
        peer: credentials of the process that connected, over a Unix socket.
        disconnected: set when the caller's connection has ended; also a call that was answered can wait for it.
    """

    __slots__ = ("_deadline", "disconnected", "metadata", "method", "peer", "service", "timeout")

    def __init__(
        self,
        service: str,
        method: str,
        metadata: Mapping[str, str],
        timeout: float | None = None,
        peer: PeerCredentials | None = None,
        disconnected: asyncio.Event | None = None,
    ) -> None:
        self.service = service
        self.method = method
        self.metadata = metadata
        self.timeout = timeout
        self.peer = peer
        self.disconnected = disconnected or asyncio.Event()
        self._deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout

    def remaining(self) -> float | None:
        """Seconds until the deadline, at least 0; None without one."""
        if self._deadline is None:
            return None
        return max(0.0, self._deadline - asyncio.get_running_loop().time())


#: The serialized answer, whole or in two pieces, of which the second is sent without being copied.
Answer = bytes | tuple[bytes, bytes]
UnaryHandler = Callable[[CallContext, bytes], Awaitable[Answer]]


@dataclass(frozen=True)
class StreamHandler:
    """A handler of a streaming call.

    `run(ctx, stream)` receives and sends messages on the stream, beginning with the request's own message if there is
    one, and ends the call by returning: bytes as the one answer to a client that streamed, None for no further answer.
    """

    run: Callable[[CallContext, Stream], Awaitable[bytes | None]]


Handler = UnaryHandler | StreamHandler
Handlers = Mapping[tuple[str, str], Handler]
