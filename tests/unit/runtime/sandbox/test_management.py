"""The management socket: what it answers, and what it does with clients that are broken, slow, or too many."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from kata.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    KataError,
    NotFound,
    Unavailable,
)
from kata.management import server
from kata.management.client import request, stream
from kata.management.protocol import MAX_BODY, SOCKET
from kata.management.server import Request, Response, Routes
from kata.runtime.sandbox import management
from kata.runtime.sandbox.management import Management
from tests.support.waiting import eventually_async

WAIT_S = 20.0


class Answers:
    """A few handlers, as the sandbox's own are."""

    def __init__(self) -> None:
        self.closed = 0
        self.requests: list[Request] = []
        self.go = asyncio.Event()

    def routes(self, opened: AsyncExitStack) -> Routes:
        return {
            "/echo": {"GET": self.echo, "POST": self.echo},
            "/fail": {"GET": self.fail},
            "/bug": {"GET": self.bug},
            "/wait": {"GET": self.wait},
            "/stream": {"GET": self.stream},
        }

    async def echo(self, request: Request) -> Response:
        self.requests.append(request)
        return Response.of({**request.query, "body": len(request.body)})

    async def fail(self, request: Request) -> Response:
        raise FailedPrecondition("it is\nstopped", hint="start it")

    async def bug(self, request: Request) -> Response:
        raise ZeroDivisionError("a bug")

    async def wait(self, request: Request) -> Response:
        await self.go.wait()
        return Response.of("went")

    async def stream(self, request: Request) -> Response:
        return Response(self.pieces(), "text/event-stream")

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        try:
            yield b"one\n"
            await self.go.wait()
            while True:
                yield b"x" * 65536
        finally:
            self.closed += 1


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Answers]:
    answers = Answers()
    served = Management(str(directory), answers.routes)
    served.serve(str(directory))
    try:
        yield answers
    finally:
        await served.close()
        assert not os.path.exists(directory / SOCKET)


async def raw(directory: Path, text: bytes, *, end: bool = True) -> bytes:
    """What comes back for some bytes, until the server closes the connection."""
    reader, writer = await asyncio.open_unix_connection(str(directory / SOCKET))
    try:
        writer.write(text)
        if end:
            writer.write_eof()
        async with asyncio.timeout(WAIT_S):
            return await reader.read()
    finally:
        writer.transport.abort()


def answers_in(text: bytes) -> list[int]:
    """The status codes in what came back."""
    return [int(found) for found in re.findall(rb"^HTTP/1\.1 (\d+)", text, re.MULTILINE)]


async def test_a_request_and_its_answer(tmp_path: Path) -> None:
    async with serving(tmp_path):
        assert stat.S_IMODE(os.stat(tmp_path / SOCKET).st_mode) == 0o600
        assert (tmp_path / "monitor_address").read_text() == f"unix://{tmp_path}/{SOCKET}"
        query = {"path": "/a b?&%/ü"}
        body = await request(tmp_path, "POST", "/echo", query=query, body=b"x" * MAX_BODY, timeout=WAIT_S)
        assert json.loads(body) == {**query, "body": MAX_BODY}


async def test_curl(tmp_path: Path) -> None:
    async with serving(tmp_path):
        arguments = ("--silent", "--unix-socket", str(tmp_path / SOCKET), "http://anything/echo?a=1")
        child = await asyncio.create_subprocess_exec("curl", *arguments, stdout=subprocess.PIPE)
        said, _ = await child.communicate()
    assert json.loads(said) == {"a": "1", "body": 0}


@pytest.mark.parametrize(
    ("path", "kind", "said", "hint"),
    [
        ("/none", NotFound, "there is no '/none'", "/echo"),
        ("/fail", FailedPrecondition, "it is stopped", "start it"),
        ("/bug", Internal, "ZeroDivisionError: a bug", "log"),
    ],
)
async def test_errors(tmp_path: Path, path: str, kind: type[KataError], said: str, hint: str) -> None:
    async with serving(tmp_path):
        with pytest.raises(kind, match=said) as caught:
            await request(tmp_path, "GET", path, timeout=WAIT_S)
    assert hint in (caught.value.hint or "")


async def test_a_wrong_method(tmp_path: Path) -> None:
    async with serving(tmp_path):
        answer = await raw(tmp_path, b"PUT /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
    assert answers_in(answer) == [405]
    assert b"Allow: GET, POST\r\n" in answer


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"GET /echo HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * 70_000, 431),
        (b"GET /echo?" + b"a=1&" * 200 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100 + b"\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"100000\r\n"
            + b"z" * 0x100000
            + b"\r\n2\r\nzz\r\n0\r\n\r\n",
            413,
        ),
    ],
)
async def test_what_is_refused(tmp_path: Path, text: bytes, status: int) -> None:
    async with serving(tmp_path) as answers:
        answer = await raw(tmp_path, text)
        assert answers_in(answer) == [status]
        assert b'{"error": ' in answer
        assert not answers.requests
        assert await request(tmp_path, "GET", "/echo", timeout=WAIT_S), "the others are still served"


async def test_one_connection_for_several_requests_sent_ahead(tmp_path: Path) -> None:
    one = b"GET /echo?n=%d HTTP/1.1\r\nHost: a\r\n\r\n"
    async with serving(tmp_path) as answers:
        answer = await raw(tmp_path, b"".join(one % number for number in range(200)))
    assert answers_in(answer) == [200] * 200
    assert [int(request.query["n"]) for request in answers.requests] == list(range(200))


async def test_a_client_that_is_slow_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_TIMEOUT_S", 0.2)
    async with serving(tmp_path):
        assert await raw(tmp_path, b"", end=False) == b"", "one that asks for nothing is told nothing"
        assert answers_in(await raw(tmp_path, b"GET /echo HT", end=False)) == [408]
        late = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabc"
        assert answers_in(await raw(tmp_path, late, end=False)) == [408]


async def test_a_client_that_does_not_take_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_SEND_TIMEOUT_S", 0.2)
    async with serving(tmp_path) as answers:
        answers.go.set()
        _, writer = await asyncio.open_unix_connection(str(tmp_path / SOCKET), limit=1)
        writer.write(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        await eventually_async(lambda: answers.closed == 1, "the stream is given up")
        writer.transport.abort()


async def test_a_stream(tmp_path: Path) -> None:
    async with serving(tmp_path) as answers:
        async with stream(tmp_path, "/stream", timeout=WAIT_S) as pieces:
            assert await anext(pieces) == b"one\n"
        await eventually_async(lambda: answers.closed == 1, "the client's end is noticed")


async def test_more_clients_than_are_served_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(management, "MAX_SERVED", 8)
    async with serving(tmp_path) as answers:
        waiting = [asyncio.ensure_future(request(tmp_path, "GET", "/wait", timeout=60)) for _ in range(100)]
        late = asyncio.ensure_future(request(tmp_path, "GET", "/echo", timeout=60))
        done, _ = await asyncio.wait({late}, timeout=0.3)
        assert not done, "it waits until one of those before it has been answered"
        answers.go.set()
        assert [json.loads(body) for body in await asyncio.gather(*waiting)] == ["went"] * 100
        assert json.loads(await late)["body"] == 0


async def test_clients_beyond_those_that_may_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(management, "MAX_SERVED", 2)
    monkeypatch.setattr(management, "MAX_WAITING", 3)
    async with serving(tmp_path) as answers:
        held = [asyncio.ensure_future(request(tmp_path, "GET", "/wait", timeout=60)) for _ in range(12)]
        await eventually_async(lambda: sum(one.done() for one in held) == 7, "the others are turned away")
        answers.go.set()
        found = await asyncio.gather(*held, return_exceptions=True)
    assert sum(isinstance(one, bytes) for one in found) == 5
    assert sum(isinstance(one, Unavailable) for one in found) == 7


async def test_200_clients_that_send_much_and_read_nothing(tmp_path: Path) -> None:
    before = _resident()
    async with serving(tmp_path) as answers:
        writers = []
        for _ in range(200):
            _, writer = await asyncio.open_unix_connection(str(tmp_path / SOCKET))
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + b"z" * 100_000)
            writers.append(writer)
        await asyncio.sleep(0.5)
        assert not answers.requests
        # Of that, 20 MB are this test's own: what the clients could not send yet.
        assert _resident() - before < 60 << 20
        for writer in writers:
            writer.transport.abort()
        assert await request(tmp_path, "GET", "/echo", timeout=WAIT_S)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_the_end_waits_for_an_answer_in_flight(tmp_path: Path) -> None:
    answers = Answers()
    served = Management(str(tmp_path), answers.routes)
    served.serve(str(tmp_path / "no-such-bundle"))
    asked = asyncio.ensure_future(request(tmp_path, "GET", "/wait", timeout=WAIT_S))
    await eventually_async(lambda: bool(served._connections), "it is connected")
    asyncio.get_running_loop().call_later(0.1, answers.go.set)
    await served.close()
    assert json.loads(await asked) == "went"
    with pytest.raises(NotFound, match="is not running"):
        await request(tmp_path, "GET", "/wait", timeout=WAIT_S)


class TestClient:
    """What stands behind the socket may be another version, or broken."""

    @asynccontextmanager
    async def saying(self, directory: Path, text: bytes, *, stay: bool = False) -> AsyncIterator[None]:
        ended: list[asyncio.Task[None]] = []

        async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(text)
            if stay:
                await reader.read()
            writer.close()
            await writer.wait_closed()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ended.append(asyncio.ensure_future(say(reader, writer)))

        async with await asyncio.start_unix_server(accept, str(directory / SOCKET)):
            yield
        await asyncio.gather(*ended, return_exceptions=True)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (b"", "closed before the end"),
            (b"\x00\x01ttrpc\r\n\r\n" + b"a" * 100_000, "not HTTP"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "closed before the end"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"a" * 2000, "more than 1000 bytes"),
            (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000, "not HTTP"),
        ],
    )
    async def test_what_is_no_answer(self, tmp_path: Path, text: bytes, said: str) -> None:
        async with self.saying(tmp_path, text):
            with pytest.raises(Unavailable, match=said):
                await request(tmp_path, "GET", "/", timeout=WAIT_S, max_answer=1000)

    async def test_an_error_without_words(self, tmp_path: Path) -> None:
        async with self.saying(tmp_path, b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\n[]"):
            with pytest.raises(InvalidArgument, match="answered with status 400"):
                await request(tmp_path, "GET", "/", timeout=WAIT_S)

    async def test_silence(self, tmp_path: Path) -> None:
        async with self.saying(tmp_path, b"HTTP/1.1 200 OK\r\n", stay=True):
            begun = time.monotonic()
            with pytest.raises(DeadlineExceeded, match=r"did not answer within 0.2 s"):
                await request(tmp_path, "GET", "/", timeout=0.2)
            assert time.monotonic() - begun < WAIT_S


def test_the_protocol_is_imported_with_the_first_connection_only() -> None:
    program = "import sys, kata.shim.daemon; print([m for m in ('h11', 'kata.management.server') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
