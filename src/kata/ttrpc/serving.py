"""One connection of the asyncio server: requests in, one task per call, answers out.

Not for users of the package; `kata.ttrpc.server` is.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from kata.ttrpc.channel import Channel
from kata.ttrpc.connection import (
    Connection,
    DataReceived,
    Event,
    RequestReceived,
    Role,
    StreamClosed,
    StreamRejected,
    StreamState,
)
from kata.ttrpc.context import Answer, CallContext, Handlers, PeerCredentials, StreamHandler
from kata.ttrpc.envelope import Response, Status
from kata.ttrpc.errors import Code, MessageTooLarge, RemoteProtocolError, StatusError
from kata.ttrpc.observer import Observer, begin
from kata.ttrpc.stream import Stream

log = logging.getLogger(__name__)

#: Characters of an error text that is sent: it must fit into a frame, and may quote a caller's long text.
_MAX_TEXT = 16 << 10

#: How long a peer may take to read the last answers before the connection is closed.
_FLUSH_TIMEOUT_S = 1.0

#: How long handlers may take to end after they were cancelled. Slower ones are abandoned with a warning.
_CANCEL_TIMEOUT_S = 5.0

ToStatus = Callable[[Exception], tuple[int, str]]


@dataclass(frozen=True)
class ServerLimits:
    """Handlers, limits and observers that all connections of a server share; see `kata.ttrpc.server.Server`."""

    handlers: Handlers
    to_status: ToStatus
    max_message: int
    max_calls: int
    unlimited: frozenset[str]
    max_queue: int
    observers: Sequence[Observer] = ()


class ServerConnection:
    """Serves one connection until it ends."""

    def __init__(self, channel: Channel, limits: ServerLimits) -> None:
        self._channel = channel
        self._limits = limits
        self._core = Connection(Role.SERVER, limits.max_message)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._streams: dict[int, Stream] = {}
        self._peer = _credentials(channel.peer)
        self._draining = False
        self._reading: asyncio.Task[None] | None = None
        self.finished = asyncio.Event()

    async def run(self) -> None:
        """Serve until the peer closes or violates the protocol, `stop` is called, or this is cancelled.

        The handlers are cancelled then, and have ended (or had `_CANCEL_TIMEOUT_S` to do so) when this returns.
        """
        self._reading = asyncio.create_task(self._read(), name="ttrpc server connection")
        try:
            await asyncio.wait([self._reading])
        finally:
            # A peer that has disconnected reads no more answers; otherwise the last ones should reach it.
            flush = 0.0 if self._reading.done() and not self._reading.cancelled() else _FLUSH_TIMEOUT_S
            self._reading.cancel()
            try:
                await self._cancel_calls()
            finally:
                await self._channel.close(flush)
                self.finished.set()

    async def drain(self, grace: float) -> None:
        """Refuse new calls, and give those in flight `grace` seconds to end."""
        self._draining = True
        if self._tasks and grace > 0:
            await asyncio.wait(self._tasks.values(), timeout=grace)

    def stop(self) -> None:
        """Have `run` return."""
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> None:
        try:
            while data := await self._channel.read():
                for event in self._core.feed(data):
                    self._dispatch(event)
                # A peer that does not read answers gets no more requests in.
                await self._channel.drained()
            self._core.eof()
        except RemoteProtocolError as error:
            log.warning("closing a connection after a protocol error of its client: %s", error)
        except OSError as error:
            log.debug("connection lost: %s", error)
        except Exception:
            log.exception("closing a connection after a bug in its server")

    async def _cancel_calls(self) -> None:
        self._draining = True
        tasks = list(self._tasks.items())
        for stream_id, task in tasks:
            self._core.forget(stream_id)
            task.cancel()
        if tasks:
            _, left = await asyncio.wait([task for _, task in tasks], timeout=_CANCEL_TIMEOUT_S)
            for task in left:
                log.warning("handler %s did not end after it was cancelled", task.get_name())

    def _dispatch(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._begin(event)
            case DataReceived(stream_id, payload):
                if (stream := self._streams.get(stream_id)) is not None and not stream.inbox.put(payload):
                    text = f"stream is read too slowly: more than {self._limits.max_queue} bytes wait"
                    self._refuse(stream_id, Code.RESOURCE_EXHAUSTED, text)
                    self._abandon(stream_id)
            case StreamClosed(stream_id):
                if (stream := self._streams.get(stream_id)) is not None:
                    stream.inbox.end()
            case StreamRejected(stream_id, _, reply):
                self._channel.post(reply)
                self._abandon(stream_id)

    def _begin(self, event: RequestReceived) -> None:
        """Start the call's task, or refuse it."""
        stream_id, request, state = event
        handler = self._limits.handlers.get((request.service, request.method))
        name = f"{request.service}/{request.method}"
        if handler is None:
            self._refuse(stream_id, Code.UNIMPLEMENTED, f"{name} is not served here")
        elif self._draining:
            self._refuse(stream_id, Code.UNAVAILABLE, "server is closing")
        elif len(self._tasks) >= self._limits.max_calls and request.service not in self._limits.unlimited:
            self._refuse(stream_id, Code.RESOURCE_EXHAUSTED, f"more than {self._limits.max_calls} calls in flight")
        elif request.timeout_nano < 0:
            self._refuse(stream_id, Code.DEADLINE_EXCEEDED, f"deadline of {name} had expired when it was sent")
        elif isinstance(handler, StreamHandler) and state is StreamState.UNARY:
            self._refuse(stream_id, Code.INVALID_ARGUMENT, f"{name} is a streaming call")
        elif not isinstance(handler, StreamHandler) and state is StreamState.OPEN:
            self._refuse(stream_id, Code.INVALID_ARGUMENT, f"{name} is not a streaming call")
        else:
            # Of a key that occurs twice the first value counts, as for Go's MetadataValue.
            metadata = dict(reversed(request.metadata))
            timeout = request.timeout_nano / 1e9 if request.timeout_nano else None
            ctx = CallContext(request.service, request.method, metadata, timeout, self._peer, self.finished)
            work: Callable[[], Awaitable[Answer | None]]
            if isinstance(handler, StreamHandler):
                work = partial(handler.run, ctx, self._open_stream(event))
            else:
                work = partial(handler, ctx, request.payload)
            task = asyncio.create_task(self._answer(stream_id, ctx, request.payload, work), name=name)
            self._tasks[stream_id] = task
            task.add_done_callback(partial(self._end, stream_id))

    def _open_stream(self, event: RequestReceived) -> Stream:
        stream = Stream(event.stream_id, self._core, self._channel, self._limits.max_queue)
        self._streams[event.stream_id] = stream
        # As in Go: a client that does not stream has one message, in the request; one that does usually has none there.
        if event.state is StreamState.HALF_CLOSED:
            stream.inbox.put(event.request.payload)
            stream.inbox.end()
        elif event.request.payload:
            stream.inbox.put(event.request.payload)
        return stream

    async def _answer(
        self, stream_id: int, ctx: CallContext, payload: bytes, work: Callable[[], Awaitable[Answer | None]]
    ) -> None:
        """The task of one call. Whatever the handler does, the caller gets one answer, if it is still connected."""
        try:
            if self._limits.observers:
                response = await self._observed(stream_id, ctx, payload, work)
            else:
                response = await self._outcome(stream_id, ctx, work)
            async with self._channel.turn:
                if stream_id in self._core:
                    self._channel.post(*self._encode(stream_id, response))
                    await self._channel.drained()
        except OSError:
            pass  # the connection is gone, which _read finds out as well

    def _end(self, stream_id: int, _: asyncio.Task[None]) -> None:
        # Not in the task itself: one that is cancelled before its first step runs no `finally`.
        self._core.forget(stream_id)
        self._streams.pop(stream_id, None)
        self._tasks.pop(stream_id, None)

    async def _observed(
        self, stream_id: int, ctx: CallContext, payload: bytes, work: Callable[[], Awaitable[Answer | None]]
    ) -> Response | None:
        """As `_outcome`, of which the observers are told."""
        told = begin(self._limits.observers, ctx.service, ctx.method, payload, dict(ctx.metadata))
        status = Status(Code.CANCELLED, "the call was cancelled")
        try:
            response = await self._outcome(stream_id, ctx, work)
            status = response.status if response else Status()
            return response
        finally:
            for done in told:
                done(status.code, status.message)

    async def _outcome(
        self, stream_id: int, ctx: CallContext, work: Callable[[], Awaitable[Answer | None]]
    ) -> Response | None:
        """The response; None for the plain end of a stream.

        Raises:
            asyncio.CancelledError: the call was cancelled. Any other error of the handler is in the response.
        """
        limit = asyncio.timeout(ctx.timeout)
        try:
            async with limit:
                payload = await work()
            if payload is None and stream_id in self._streams:
                return None
            if isinstance(payload, tuple):
                return Response(Status(), *payload)
            if not isinstance(payload, bytes):
                wrong = TypeError(f"handler returned {type(payload).__name__} instead of bytes")
                return Response(self._status(ctx, wrong))
            return Response(payload=payload)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The call was not cancelled: the handler awaited something that was.
            return Response(Status(Code.CANCELLED, "handler was cancelled"))
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                text = f"{ctx.service}/{ctx.method} did not end within {ctx.timeout:g} s"
                return Response(Status(Code.DEADLINE_EXCEEDED, text))
            return Response(self._status(ctx, error))

    def _status(self, ctx: CallContext, error: Exception) -> Status:
        if isinstance(error, StatusError):
            return self._failure(error.code, error.message, error.details)
        try:
            code, text = self._limits.to_status(error)
        except Exception:
            log.exception("to_status failed for %r", error)
            code, text = Code.INTERNAL, str(error)
        if code in (Code.UNKNOWN, Code.INTERNAL):
            log.error("%s/%s failed", ctx.service, ctx.method, exc_info=error)
        return self._failure(code, text)

    def _failure(self, code: int, text: str, details: tuple[bytes, ...] = ()) -> Status:
        # A failure is never OK, whatever code a handler raises, and its text is never too long to be sent.
        return Status(code or Code.UNKNOWN, text[: min(_MAX_TEXT, self._limits.max_message // 8)], details)

    def _encode(self, stream_id: int, response: Response | None) -> tuple[bytes, bytes]:
        """The frame, and the tail that follows it."""
        if response is None:
            return self._core.close_send(stream_id), b""
        try:
            return self._core.respond(stream_id, response), response.tail
        except MessageTooLarge as error:
            status = self._failure(Code.RESOURCE_EXHAUSTED, f"cannot send the answer: {error}")
            return self._core.respond(stream_id, Response(status)), b""

    def _refuse(self, stream_id: int, code: Code, text: str) -> None:
        self._channel.post(self._core.respond(stream_id, Response(self._failure(code, text))))

    def _abandon(self, stream_id: int) -> None:
        """Cancel the handler of a stream that has ended."""
        if (task := self._tasks.get(stream_id)) is not None:
            task.cancel()


def _credentials(sock: object) -> PeerCredentials | None:
    if getattr(sock, "family", None) != socket.AF_UNIX:
        return None
    layout = struct.Struct("3i")
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)  # type: ignore[attr-defined]
    return PeerCredentials(*layout.unpack(raw))
