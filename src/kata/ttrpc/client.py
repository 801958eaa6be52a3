"""The asyncio client: many calls at once over one connection.

    client = await Client.connect_unix("/run/agent.sock")
    answer = await client.call("grpc.Health", "Check", payload, timeout=5)
    await client.close()

It deals in bytes; `kata.ttrpc.typed` puts protobuf messages on top. A lost connection stays lost,
and so do its calls: whether they were carried out is not known here.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from kata.ttrpc.address import unix_address
from kata.ttrpc.channel import BUFFER_LIMIT, Channel
from kata.ttrpc.connection import (
    Connection,
    DataReceived,
    Event,
    ResponseReceived,
    Role,
    StreamClosed,
    StreamRejected,
)
from kata.ttrpc.envelope import Request, Response, Status, metadata_pairs
from kata.ttrpc.errors import CallTimeout, Code, ConnectionClosed, RemoteProtocolError, StatusError, TtrpcError
from kata.ttrpc.frames import MAX_MESSAGE
from kata.ttrpc.observer import Observer, observed
from kata.ttrpc.stream import MAX_QUEUE, ClientStream

log = logging.getLogger(__name__)

#: How long a peer may take to read what is buffered before the connection is closed.
_FLUSH_TIMEOUT_S = 1.0


class Client:
    """A connection to a server. Made inside a running event loop; has to be closed.

    Args:
        reader, writer: the connection; the client owns them from now on.
        max_message: largest frame, in bytes.
        max_queue: bytes that may wait in the queue of one stream, see `kata.ttrpc.stream`.
        core: the state of a connection on which unary calls have been sent already; `answer` waits for their answers.

    Attributes:
        observers: told of each call, but for those of `core`.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        max_message: int = MAX_MESSAGE,
        max_queue: int = MAX_QUEUE,
        core: Connection | None = None,
    ) -> None:
        self.observers: list[Observer] = []
        self._channel = Channel(reader, writer)
        self._core = core or Connection(Role.CLIENT, max_message)
        self._max_queue = max_queue
        # Errors are results here: a future whose exception nobody asks for would be logged.
        loop = asyncio.get_running_loop()
        self._calls: dict[int, asyncio.Future[Response | TtrpcError]] = {
            stream_id: loop.create_future() for stream_id in self._core.open_streams
        }
        self._early = dict(self._calls)
        self._streams: dict[int, ClientStream] = {}
        self._end: ConnectionClosed | None = None
        self._heard = loop.time()
        self._reading = asyncio.create_task(self._read(), name="ttrpc client")

    @classmethod
    async def connect_unix(cls, path: str) -> Client:
        """Connect to a Unix socket; "@name" is an abstract one. Raises OSError."""
        return cls(*await asyncio.open_unix_connection(unix_address(path), limit=BUFFER_LIMIT))

    @classmethod
    async def from_socket(cls, sock: socket.socket, core: Connection | None = None) -> Client:
        """Take over a connected stream socket of any family.

        Args:
            sock: owned from now on.
            core: see the class.

        Raises:
            OSError: asyncio cannot use the socket.
        """
        sock.setblocking(False)
        return cls(*await asyncio.open_connection(sock=sock, limit=BUFFER_LIMIT), core=core)

    @property
    def closed(self) -> bool:
        """Whether the connection is gone."""
        return self._end is not None

    @property
    def heard(self) -> float:
        """When something came from the server last, by the loop's clock; at first, when the client was made."""
        return self._heard

    async def wait_closed(self) -> None:
        """Wait until the connection is gone, whichever side ends it."""
        await asyncio.wait([self._reading])

    async def close(self) -> None:
        """Close the connection. Calls in flight fail with ConnectionClosed. Idempotent."""
        if self._end is None:
            self._lose(None)
            self._reading.cancel()
            await asyncio.wait([self._reading])
            await self._channel.close(_FLUSH_TIMEOUT_S)
        await asyncio.wait([self._reading])

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes = b"",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> bytes:
        """Make a unary call and return the serialized answer.

        A call that is cancelled or times out is forgotten here; the server finds out only by its own clock.

        Args:
            service: full name of the service.
            method: name of the RPC.
            payload: the serialized request.
            timeout: seconds, enforced here and sent to the server; None for no limit.
            metadata: sent along.

        Raises:
            StatusError: the server's status.
            CallTimeout: there was no answer in time.
            ConnectionClosed: the connection is closed, or ends before the answer.
            MessageTooLarge: nothing was sent.
        """
        if not self.observers:
            return await self._call(service, method, payload, timeout, metadata)
        sent = dict(metadata or ())
        with observed(self.observers, service, method, payload, sent):
            return await self._call(service, method, payload, timeout, sent)

    async def _call(
        self, service: str, method: str, payload: bytes, timeout: float | None, metadata: Mapping[str, str] | None
    ) -> bytes:
        request = _request(service, method, payload, timeout, metadata)
        try:
            async with asyncio.timeout(timeout):
                return await self._exchange(request)
        except TimeoutError:
            raise _deadline_exceeded(f"{service}/{method}", timeout) from None

    async def answer(self, stream_id: int) -> bytes:
        """The serialized answer to a call that was sent before this client was made; may be asked for once.

        Raises:
            StatusError, ConnectionClosed: as `call`.
        """
        try:
            return _payload(await self._early.pop(stream_id))
        finally:
            self._forget(stream_id)

    async def _exchange(self, request: Request) -> bytes:
        future: asyncio.Future[Response | TtrpcError] = asyncio.get_running_loop().create_future()
        stream_id = 0
        try:
            async with self._channel.turn:
                self._require_open()
                stream_id, frame = self._core.request(request)
                self._calls[stream_id] = future
                self._channel.post(frame)
                try:
                    await self._channel.drained()
                except OSError as error:
                    # The peer may have answered before it disconnected.
                    if not future.done():
                        raise ConnectionClosed(error) from error
            return _payload(await future)
        finally:
            self._forget(stream_id)

    def _forget(self, stream_id: int) -> None:
        self._calls.pop(stream_id, None)
        self._core.forget(stream_id)

    @asynccontextmanager
    async def stream(
        self,
        service: str,
        method: str,
        payload: bytes = b"",
        *,
        client_streams: bool = True,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncIterator[ClientStream]:
        """Make a streaming call: `async with client.stream(…) as stream`.

        Leaving the block ends the call for this side. The server is told that nothing more is sent to it, but ttrpc
        cannot tell it to stop; what it still sends is dropped.

        Args:
            service: full name of the service.
            method: name of the RPC.
            payload: the request message of a call whose client does not stream; else usually empty.
            client_streams: whether messages follow the request.
            timeout: seconds for the whole block; None for no limit.
            metadata: sent along.

        Raises:
            StatusError: the server's status.
            CallTimeout: there was no answer in time.
            ConnectionClosed: the connection is closed, or ends before the stream does.
            MessageTooLarge: the message was not sent.
            TimeoutError: the block raised it, for a limit of its own.
        """
        sent = dict(metadata or ())
        with observed(self.observers, service, method, payload, sent):
            async with self._stream(
                _request(service, method, payload, timeout, sent), client_streams, timeout
            ) as stream:
                yield stream

    @asynccontextmanager
    async def _stream(
        self, request: Request, client_streams: bool, timeout: float | None
    ) -> AsyncIterator[ClientStream]:
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                stream_id, stream = await self._open(request, client_streams)
                try:
                    yield stream
                finally:
                    self._leave(stream_id)
        except TimeoutError:
            if not limit.expired():
                raise
            raise _deadline_exceeded(f"{request.service}/{request.method}", timeout) from None

    async def _open(self, request: Request, client_streams: bool) -> tuple[int, ClientStream]:
        async with self._channel.turn:
            self._require_open()
            stream_id, frame = self._core.open_stream(request, client_streams=client_streams)
            stream = ClientStream(stream_id, self._core, self._channel, self._max_queue)
            self._streams[stream_id] = stream
            self._channel.post(frame)
        return stream_id, stream

    def _leave(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)
        if self._end is None and stream_id in self._core and self._core.sendable(stream_id):
            self._channel.post(self._core.close_send(stream_id))
        self._core.forget(stream_id)

    async def _read(self) -> None:
        cause: Exception | None = None
        try:
            while data := await self._channel.read():
                self._heard = asyncio.get_running_loop().time()
                for event in self._core.feed(data):
                    self._deliver(event)
            self._core.eof()
        except (OSError, RemoteProtocolError) as error:
            cause = error
        except Exception as error:
            log.exception("closing a connection after a bug in its client")
            cause = error
        self._lose(cause)
        await self._channel.close()

    def _deliver(self, event: Event) -> None:
        match event:
            case ResponseReceived(stream_id, response):
                self._finish(stream_id, response)
            case StreamRejected(stream_id, status):
                self._finish(stream_id, Response(status))
            case StreamClosed(stream_id):
                self._finish(stream_id, Response())
            case DataReceived(stream_id, payload):
                if not self._streams[stream_id].inbox.put(payload):
                    self._core.forget(stream_id)
                    text = f"stream is read too slowly: more than {self._max_queue} bytes wait"
                    self._finish(stream_id, Response(Status(Code.RESOURCE_EXHAUSTED, text)))

    def _finish(self, stream_id: int, response: Response) -> None:
        if (future := self._calls.pop(stream_id, None)) is not None:
            if not future.done():
                future.set_result(response)
        elif (stream := self._streams.pop(stream_id, None)) is not None:
            if response.status.code != Code.OK:
                stream.inbox.end(StatusError(*response.status))
            else:
                stream.final = response.payload
                stream.inbox.end()

    def _lose(self, cause: BaseException | None) -> None:
        if self._end is not None:
            return
        self._end = ConnectionClosed(cause)
        if isinstance(cause, RemoteProtocolError):
            log.warning("closing a connection after a protocol error of its server: %s", cause)
        for future in self._calls.values():
            if not future.done():
                future.set_result(ConnectionClosed(cause))
        for stream in self._streams.values():
            stream.inbox.end(ConnectionClosed(cause))
        self._calls.clear()
        self._streams.clear()

    def _require_open(self) -> None:
        if self._end is not None:
            raise ConnectionClosed(self._end.cause)


def _request(
    service: str, method: str, payload: bytes, timeout: float | None, metadata: Mapping[str, str] | None
) -> Request:
    request = Request(service, method, payload, 0, metadata_pairs(metadata))
    if timeout is None:
        return request
    if timeout <= 0:
        raise _deadline_exceeded(f"{service}/{method}", timeout)
    # A rounded-down 0 would mean "no limit", and more than 63 bits do not fit.
    return request._replace(timeout_nano=min(max(1, int(timeout * 1e9)), (1 << 63) - 1))


def _payload(outcome: Response | TtrpcError) -> bytes:
    """The payload of a response.

    Raises:
        TtrpcError: the outcome is one.
        StatusError: the response contains another status than OK.
    """
    if isinstance(outcome, TtrpcError):
        raise outcome
    if outcome.status.code != Code.OK:
        raise StatusError(*outcome.status)
    return outcome.payload


def _deadline_exceeded(what: str, timeout: float | None) -> CallTimeout:
    return CallTimeout(Code.DEADLINE_EXCEEDED, f"{what} did not end within {timeout or 0:g} s")
