"""Serving HTTP with deadlines and bounds: uvicorn, with what it leaves to a proxy in front of it.

uvicorn waits for ever for a request that does not come whole and for a client that does not take its answer, and takes
any number of connections. starlette has the rest: routes, files with their dates, answers in pieces.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlsplit

import h11
import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from kata.errors import InvalidArgument, Unavailable

log = logging.getLogger(__name__)

#: Connections at a time; any further one is closed.
MAX_CONNECTIONS = 256
#: Bytes of a request's first line and headers.
MAX_HEADERS = 16 << 10
#: Seconds for a request to come whole, for a client to take what it is sent, and until an idle connection is closed.
REQUEST_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 30.0
_IDLE_TIMEOUT_S = 15
#: Seconds for what is under way when the server ends.
_GRACE_S = 1

#: No other host, no frame around it, nothing from a guest that is run: docs/guide/monitoring.md.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class _Deadline:
    """A deadline that is set, or not."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, passed: Callable[[], None]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._passed = passed
        self._timer: asyncio.TimerHandle | None = None

    def set(self) -> None:
        """Set it, unless it is."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._passed)

    def clear(self) -> None:
        """It has been met."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Protocol(H11Protocol):
    """One connection. A deadline that passes ends it."""

    def connection_made(self, transport: Any) -> None:
        """The client has connected."""
        super().connection_made(transport)
        self._request_by = _Deadline(self.loop, REQUEST_TIMEOUT_S, transport.abort)
        self._taken_by = _Deadline(self.loop, ANSWER_TIMEOUT_S, transport.abort)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._request_by.set()

    def data_received(self, data: bytes) -> None:
        """The client has sent something."""
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            # Since the first byte of the request: those that trickle in do not put it off.
            self._request_by.set()
        else:
            self._request_by.clear()

    def pause_writing(self) -> None:
        """The client takes less than it is sent."""
        super().pause_writing()
        self._taken_by.set()

    def resume_writing(self) -> None:
        """The client has taken it."""
        self._taken_by.clear()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._request_by.clear()
        self._taken_by.clear()
        super().connection_lost(exc)


class Guard:
    """Refuses what a page of another host may have sent, and says in each answer what a browser may do with it.

    A page elsewhere can have a name of its own point here (DNS rebinding), and its browser then asks in that name. So
    only names that nobody else can have are taken: addresses, `localhost`, and this host's own.

    Args:
        app: what is guarded.
        names: of this host.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        app = self._app
        # h11 bounds only what has not come whole.
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        if size > MAX_HEADERS:
            app = PlainTextResponse(f"more than {MAX_HEADERS} bytes of headers\n", 431)
        elif not is_ours(host, self._names):
            app = PlainTextResponse("the Host header is not a name of this host, nor an address\n", 421)
        elif scope["method"] not in ("GET", "HEAD"):
            app = PlainTextResponse("nothing can be changed here\n", 405, {"Allow": "GET, HEAD"})

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await app(scope, receive, send_with_headers)


def is_ours(host: str, names: Collection[str]) -> bool:
    """Whether a Host header, with or without a port, is an address, or one of the names."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name in names:
            return True
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return False


def own_names() -> set[str]:
    """The names that only this host has."""
    return {"localhost", socket.gethostname(), socket.getfqdn()}


def listen(address: str) -> socket.socket:
    """Listen on "HOST:PORT", "[HOST]:PORT" or ":PORT", which is every address.

    Raises:
        InvalidArgument: it is none of these.
        Unavailable: the host has no such address, or its port is taken.
    """
    host, port = _host_and_port(address)
    if port is None:
        raise InvalidArgument(f"invalid address {address!r}", hint="HOST:PORT, such as 127.0.0.1:8090")
    try:
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise Unavailable(f"listen on {address}: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(where)
        sock.listen(MAX_CONNECTIONS)
    except OSError as error:
        sock.close()
        raise Unavailable(f"listen on {address}: {error.strerror}", hint="--listen-address takes another") from error
    return sock


def _host_and_port(address: str) -> tuple[str, int | None]:
    """The two parts of an address; no port if it is none."""
    try:
        parts = urlsplit(f"//{address}")
        is_one = parts.netloc == address and parts.username is None
        return parts.hostname or "::", parts.port if is_one else None
    except ValueError:
        return "", None


async def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serve until a signal ends the process.

    Raises:
        CancelledError: it was cancelled; the connections are closed.
    """
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEADERS,
        timeout_keep_alive=_IDLE_TIMEOUT_S,
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = uvicorn.Server(config)
    try:
        await server.serve([listener])
    except asyncio.CancelledError:
        # Which leaves it as it is.
        await server.shutdown([listener])
        raise
