"""One connection of an HTTP/1.1 client: h11 keeps the protocol, this the limits and the deadlines.

Requests on a connection are answered one after the other. What the client sends ahead waits in the kernel. The Host
header says nothing on a Unix socket, and is ignored.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import h11

from kata.errors import Internal, InvalidArgument, KataError
from kata.management.protocol import MAX_BODY, MAX_HEADERS, status_of

log = logging.getLogger(__name__)

#: Seconds to send a request, or the next one on the same connection.
REQUEST_TIMEOUT_S = 30.0
#: Seconds for a client to take what it is sent, and bytes of a refused request that are still read from it.
_SEND_TIMEOUT_S = 30.0
_DISCARD_TIMEOUT_S = 1.0
_MAX_DISCARDED = 4 << 20
_CHUNK = 16 << 10
_MAX_FIELDS = 64
_MAX_SHOWN = 100

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Request:
    """A request.

    Attributes:
        method: "GET", …
        path: without the query, and decoded.
        query: the fields of the query; of a name that occurs twice, the last one.
        body: all of it; empty if there is none.
    """

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes

    def fields(self) -> dict[str, Any]:
        """The body as a JSON object; no body is one without fields.

        Raises:
            InvalidArgument: it is something else.
        """
        try:
            found = json.loads(self.body or b"{}")
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"the request's body is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise InvalidArgument("the request's body is not a JSON object")
        return found


@dataclass(frozen=True)
class Response:
    """An answer.

    Attributes:
        body: all of it, or a generator of its pieces, which is closed when the client has gone.
        content_type: of the body.
        status: HTTP's code.
        headers: more of them.
    """

    body: bytes | AsyncGenerator[bytes, None] = b""
    content_type: str = JSON
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, value: Any) -> Response:
        """The value as JSON."""
        return cls(json.dumps(value).encode() + b"\n")


Handler = Callable[[Request], Awaitable[Response]]
#: Handlers by path and method.
Routes = Mapping[str, Mapping[str, Handler]]


class _Refused(Exception):
    """The request is not answered, and is the last one of its connection."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, routes: Routes) -> None:
    """Answer a client's requests until it or a deadline ends the connection, which is closed then.

    Args:
        reader: of the connection.
        writer: of the connection.
        routes: what is answered.
    """
    try:
        await _Connection(reader, writer, routes).run()
    except (OSError, TimeoutError) as error:
        log.debug("a management client has gone: %s", error)
    finally:
        await _close(writer)


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, routes: Routes) -> None:
        self._reader = reader
        self._writer = writer
        self._routes = routes
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADERS)

    async def run(self) -> None:
        """Serve. Raises OSError, TimeoutError: the client has gone, or does not take its answer."""
        while await self._answer_one():
            self._http.start_next_cycle()

    async def _answer_one(self) -> bool:
        """Answer the next request; returns whether there can be another one."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                request = await self._receive()
        except TimeoutError:
            if not self._http.trailing_data[0] and self._http.their_state is h11.IDLE:
                return False  # it has asked for nothing
            await self._refuse(_Refused(408, f"the request did not come within {REQUEST_TIMEOUT_S:g} s"))
            return False
        except h11.RemoteProtocolError as error:
            await self._refuse(_Refused(error.error_status_hint, f"invalid request: {error}"))
            return False
        except _Refused as refused:
            await self._refuse(refused)
            return False
        if request is None:
            return False
        await self._send(await self._respond(request))
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _receive(self) -> Request | None:
        """The next request; None if the client has sent its last one.

        Raises:
            _Refused: its body is too large, or it names no path.
            h11.RemoteProtocolError: it is not HTTP.
        """
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    self._write(h11.InformationalResponse(status_code=100, headers=[]))
                self._http.receive_data(await self._reader.read(_CHUNK))
            elif isinstance(event, h11.Request):
                head = event
                length = dict(head.headers).get(b"content-length", b"0")
                if int(length) > MAX_BODY:
                    raise _Refused(413, f"the request's body has {int(length)} bytes; the maximum is {MAX_BODY}")
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_BODY:
                    raise _Refused(413, f"the request's body has more than {MAX_BODY} bytes")
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return _request(head, bytes(body))
            else:
                return None

    async def _respond(self, request: Request) -> Response:
        try:
            methods = self._routes.get(request.path)
            if methods is None:
                return _error(404, f"there is no {request.path[:_MAX_SHOWN]!a}", f"there are {' '.join(self._routes)}")
            handler = methods.get(request.method)
            if handler is None:
                allowed = ", ".join(methods)
                refusal = _error(405, f"{request.path} does not take {request.method[:_MAX_SHOWN]!a}", f"use {allowed}")
                return Response(refusal.body, status=405, headers=(("Allow", allowed),))
            return await handler(request)
        except KataError as error:
            return _error(status_of(error), error.message, error.hint)
        except Exception as error:
            log.exception("%s %s failed", request.method, request.path)
            internal = Internal(f"internal error: {type(error).__name__}: {error}")
            return _error(status_of(internal), internal.message, "the shim's log has more")

    async def _refuse(self, refused: _Refused) -> None:
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        response = _error(refused.status, str(refused), None)
        await self._send(Response(response.body, status=refused.status, headers=(("Connection", "close"),)))
        # A client that still sends would otherwise lose the answer with the connection.
        left = _MAX_DISCARDED
        async with asyncio.timeout(_DISCARD_TIMEOUT_S):
            while left > 0 and (data := await self._reader.read(_CHUNK)):
                left -= len(data)

    async def _send(self, response: Response) -> None:
        headers = [("Content-Type", response.content_type), ("Cache-Control", "no-store"), *response.headers]
        if isinstance(response.body, bytes):
            headers.append(("Content-Length", str(len(response.body))))
        self._write(h11.Response(status_code=response.status, headers=headers))
        if isinstance(response.body, bytes):
            self._write(h11.Data(data=response.body))
        else:
            await self._stream(response.body)
        self._write(h11.EndOfMessage())
        await self._drain()

    async def _stream(self, pieces: AsyncGenerator[bytes, None]) -> None:
        """Send pieces as they come, until their end.

        Raises:
            ConnectionResetError: the client has gone before that.
        """
        sending = asyncio.ensure_future(self._send_pieces(pieces))
        gone = asyncio.ensure_future(self._until_gone())
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise ConnectionResetError("the client has gone")
            await sending
        finally:
            sending.cancel()
            gone.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)

    async def _send_pieces(self, pieces: AsyncGenerator[bytes, None]) -> None:
        try:
            await self._drain()
            async for piece in pieces:
                self._write(h11.Data(data=piece))
                await self._drain()
        finally:
            await pieces.aclose()

    async def _until_gone(self) -> None:
        # What it sends meanwhile cannot be answered.
        while await self._reader.read(_CHUNK):
            pass

    def _write(self, event: Any) -> None:
        self._writer.write(self._http.send(event) or b"")

    async def _drain(self) -> None:
        async with asyncio.timeout(_SEND_TIMEOUT_S):
            await self._writer.drain()


def _request(head: h11.Request, body: bytes) -> Request:
    """Read the target of a request.

    Raises:
        _Refused: it is none.
    """
    target = head.target.decode("ascii")
    try:
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query, keep_blank_values=True, max_num_fields=_MAX_FIELDS))
    except ValueError as error:
        raise _Refused(400, f"invalid request target {target[:_MAX_SHOWN]!a}: {error}") from error
    return Request(head.method.decode("ascii"), unquote(parts.path), query, body)


def _error(status: int, message: str, hint: str | None) -> Response:
    said = {"error": " ".join(message.split()), **({"hint": hint} if hint else {})}
    return Response(json.dumps(said).encode() + b"\n", status=status)


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close a connection once its client has taken what is buffered, or its time for that is over."""
    writer.close()
    closed = asyncio.ensure_future(writer.wait_closed())
    try:
        await asyncio.wait([closed], timeout=_SEND_TIMEOUT_S)
    finally:
        if not closed.done():
            writer.transport.abort()
        await asyncio.gather(closed, return_exceptions=True)
