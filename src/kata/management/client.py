"""Requests to a running sandbox, by its state directory: one answer whole, or a stream of it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import h11

from kata.errors import DeadlineExceeded, NotFound, PermissionDenied, Unavailable
from kata.management.protocol import SOCKET, error_of

#: Bytes of an answer that is read whole.
MAX_ANSWER = 16 << 20
#: Bytes of an answer's headers.
_MAX_HEADERS = 64 << 10
_CHUNK = 64 << 10


async def request(
    directory: Path,
    method: str,
    path: str,
    *,
    timeout: float,
    query: Mapping[str, str] | None = None,
    body: bytes = b"",
    max_answer: int = MAX_ANSWER,
) -> bytes:
    """Make a request and return the body of the answer.

    Args:
        directory: the sandbox's state directory.
        method: "GET", "POST" or "PUT".
        path: of docs/reference/management.md.
        timeout: seconds for all of it.
        query: fields of the query.
        body: of the request.
        max_answer: bytes.

    Raises:
        NotFound: the sandbox does not run, or answers with this error.
        DeadlineExceeded: it did not answer in time.
        Unavailable: the connection broke, or the answer is none, or is too large.
        PermissionDenied: this is not root.
        KataError: any other error that the sandbox answers with.
    """  # noqa: DOC501 - `_late` makes a DeadlineExceeded
    async with stream(directory, path, method=method, timeout=timeout, query=query, body=body) as pieces:
        try:
            async with asyncio.timeout(timeout):
                return await _all(pieces, max_answer, directory)
        except TimeoutError:
            raise _late(directory, timeout) from None


@asynccontextmanager
async def stream(
    directory: Path,
    path: str,
    *,
    timeout: float,
    method: str = "GET",
    query: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> AsyncIterator[AsyncGenerator[bytes, None]]:
    """Make a request whose answer has no end of its own, which is the value: `async for piece in pieces`.

    Args:
        directory: the sandbox's state directory.
        path: of docs/reference/management.md.
        timeout: seconds until the answer begins.
        method: "GET", "POST" or "PUT".
        query: fields of the query.
        body: of the request.

    Raises:
        KataError: as `request`; of the pieces, Unavailable if the connection breaks.
    """  # noqa: DOC501 - `_late` and `_error` make such errors
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await _connect(directory)
    except TimeoutError:
        raise _late(directory, timeout) from None
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEADERS)
    try:
        try:
            async with asyncio.timeout(timeout):
                target = quote(path) + (f"?{urlencode(query)}" if query else "")
                await _send(http, writer, method, target, body)
                status = await _status(http, reader, directory)
                if status >= 400:
                    raise _error(status, await _all(_pieces(http, reader, directory), MAX_ANSWER, directory))
        except TimeoutError:
            raise _late(directory, timeout) from None
        pieces = _pieces(http, reader, directory)
        try:
            yield pieces
        finally:
            await pieces.aclose()
    finally:
        writer.transport.abort()


async def _connect(directory: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        return await asyncio.open_unix_connection(str(directory / SOCKET))
    except PermissionError as error:
        raise PermissionDenied(f"sandbox {directory.name} answers root only", hint="run it with sudo") from error
    except OSError as error:
        raise _not_running(directory) from error


def _not_running(directory: Path) -> NotFound:
    hint = "`kata list` shows all sandboxes"
    if os.path.exists(directory):
        hint = "it starts or has ended, or another version of kata has started it: see `kata list`"
    return NotFound(f"sandbox {directory.name} is not running", hint=hint)


async def _send(http: h11.Connection, writer: asyncio.StreamWriter, method: str, target: str, body: bytes) -> None:
    headers = [("Host", "localhost"), ("Connection", "close")]
    if body or method != "GET":
        headers.append(("Content-Length", str(len(body))))
    head = h11.Request(method=method, target=target, headers=headers)
    for event in (head, h11.Data(data=body), h11.EndOfMessage()):
        writer.write(http.send(event) or b"")
    try:
        await writer.drain()
    except OSError:
        pass  # it may have answered before it closed the connection


async def _status(http: h11.Connection, reader: asyncio.StreamReader, directory: Path) -> int:
    while True:
        event = await _next(http, reader, directory)
        if isinstance(event, h11.Response):
            return int(event.status_code)


async def _pieces(http: h11.Connection, reader: asyncio.StreamReader, directory: Path) -> AsyncGenerator[bytes, None]:
    while True:
        event = await _next(http, reader, directory)
        if isinstance(event, h11.Data):
            yield bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return


async def _next(http: h11.Connection, reader: asyncio.StreamReader, directory: Path) -> Any:
    """The next event of the answer.

    Raises:
        Unavailable: the connection broke, or carries no HTTP.
    """  # noqa: DOC501 - `_broken` makes it
    try:
        while (event := http.next_event()) is h11.NEED_DATA:
            http.receive_data(await reader.read(_CHUNK))
        return event
    except OSError as error:
        raise _broken(directory, (error.strerror or str(error)).lower()) from error
    except h11.RemoteProtocolError as error:
        early = "the connection was closed before the end of the answer"
        raise _broken(directory, early if reader.at_eof() else f"its answer is not HTTP: {error}") from error


async def _all(pieces: AsyncGenerator[bytes, None], limit: int, directory: Path) -> bytes:
    whole = bytearray()
    async for piece in pieces:
        whole += piece
        if len(whole) > limit:
            raise _broken(directory, f"the answer has more than {limit} bytes")
    return bytes(whole)


def _error(status: int, body: bytes) -> Exception:
    try:
        said = json.loads(body)
        return error_of(status, str(said["error"]), said.get("hint"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return error_of(status, f"the sandbox answered with status {status}", None)


def _broken(directory: Path, why: str) -> Unavailable:
    return Unavailable(f"sandbox {directory.name}: {why}", hint="`kata list` shows whether it still runs")


def _late(directory: Path, timeout: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"sandbox {directory.name} did not answer within {timeout:g} s",
        hint="the shim's log says what it does; `kata gc` releases what is left if its process has died",
    )
