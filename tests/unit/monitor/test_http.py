"""What whoever reaches the port can do: nothing but look, and not much of that at a time."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from pathlib import Path

import pytest

from kata.errors import InvalidArgument, Unavailable
from kata.monitor import http
from tests.support.fakesandboxes import FakeSandbox, metrics_text
from tests.support.waiting import eventually_async
from tests.unit.monitor.conftest import Served, known

NAMES = {"localhost", "node1", "node1.example.org"}


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:8090", True),
        ("[::1]:8090", True),
        ("10.1.2.3:8090", True),
        ("localhost:8090", True),
        ("LOCALHOST", True),
        ("node1", True),
        ("node1.example.org:80", True),
        ("rebound.example.com", False),
        ("rebound.example.com:8090", False),
        ("127.0.0.1.example.com", False),
        ("localhost.example.com", False),
        ("localhost@example.com", False),
        ("node2", False),
        ("", False),
        (":8090", False),
        ("[::1", False),
        ("127.0.0.1/..", True),
        ("example.com#127.0.0.1", False),
    ],
)
def test_names_that_nobody_else_can_have(host: str, ours: bool) -> None:
    assert http.is_ours(host, NAMES) is ours


@pytest.mark.parametrize(
    "address", ["", "8090", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", "http://a:1", "a:1/b", "u@a:1"]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(InvalidArgument):
        http.listen(address)


def test_a_port_that_is_taken() -> None:
    with http.listen("127.0.0.1:0") as taken, pytest.raises(Unavailable, match="listen on") as error:
        http.listen(f"127.0.0.1:{taken.getsockname()[1]}")
    assert error.value.hint


def test_every_address_means_ipv4_as_well() -> None:
    with http.listen(":0") as listener:
        socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=5).close()


async def test_another_name_is_refused_and_nothing_can_be_changed(served: Served) -> None:
    refused = await served.get("/sandboxes", Host="rebound.example.com")
    assert (refused.status, refused.text) == (421, "the Host header is not a name of this host, nor an address\n")
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        answer = await served.get("/sandboxes", method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    answer = await served.get("/sandboxes", "HEAD")
    assert (answer.status, answer.body) == (200, b"")


async def test_no_answer_may_be_used_by_another_page(served: Served) -> None:
    for path in ("/", "/metrics", "/nothing", "/api/stream/x", "/page/page.js"):
        headers = (await served.get(path, Origin="http://evil.example")).headers
        assert "access-control-allow-origin" not in headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/nothing", "/page/../main.py", "/page/%2e%2e/main.py", "/page/", "/sandbox/", "//"])
async def test_unknown_paths(served: Served, path: str) -> None:
    answer = await served.get(path)
    assert answer.status == 404
    assert len(answer.body) < 200


async def test_what_is_too_large_or_is_no_http(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_TIMEOUT_S", 0.5)
    host = f"Host: 127.0.0.1:{served.port}\r\nConnection: close\r\n"
    for data in (
        f"GET / HTTP/1.1\r\n{host}A: {'x' * 40_000}\r\n\r\n",
        f"GET /{'x' * 40_000} HTTP/1.1\r\n{host}\r\n",
        f"GET /sandboxes?{'a=1&' * 20_000} HTTP/1.1\r\n{host}\r\n",
        "\x16\x03\x01\x02\x00",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        f"GET / HTTP/1.1\r\n{host}Content-Length: 5\r\nContent-Length: 6\r\n\r\nx",
    ):
        answer = await served.raw(data.encode("latin-1"))
        assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431")), data[:100]
    assert (await served.get("/sandboxes")).status == 200


async def test_one_who_does_not_finish_a_request_is_left(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_TIMEOUT_S", 0.5)
    assert await served.raw(b"") == b""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)

    async def trickle() -> None:
        for byte in b"GET / HTTP/1.1\r\nA: " + b"x" * 10_000:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)

    trickling = asyncio.create_task(trickle())
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionResetError):  # something was on its way
            assert await reader.read() == b""
    trickling.cancel()
    await asyncio.gather(trickling, return_exceptions=True)
    writer.transport.abort()


async def test_one_who_takes_no_answer_is_left(tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "ANSWER_TIMEOUT_S", 0.5)
    async with FakeSandbox(tmp_path, "box", metrics=metrics_text()):
        await known(served, "box")
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.setblocking(False)
            # More than all buffers hold: many answers asked for at once, none of them read.
            client.send(f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n\r\n".encode() * 500)
            await eventually_async(lambda: is_reset(client), "the connection is ended", poll_s=0.1)
        assert (await served.get("/sandboxes")).text == "box\n"


def is_reset(client: socket.socket) -> bool:
    try:
        client.send(b"x")
    except BlockingIOError:
        return False
    except (ConnectionResetError, BrokenPipeError):
        return True
    return False


async def test_two_hundred_clients_at_once(tmp_path: Path, served: Served) -> None:
    async with FakeSandbox(tmp_path, "box", metrics=metrics_text()):
        await known(served, "box")
        await served.get("/metrics")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answers = await asyncio.gather(*(served.get("/metrics") for _ in range(200)))
        assert {answer.status for answer in answers} == {200}
        assert all(b'kata_shim_threads{sandbox_id="box"' in answer.body for answer in answers)
        # The answers themselves are in this process, too.
        most = before + sum(len(answer.body) for answer in answers) // 1024 * 3 + (64 << 10)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < most


async def test_more_connections_than_are_served(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 5)
    held = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(20)]
    async with asyncio.timeout(20):
        ends = [asyncio.ensure_future(reader.read()) for reader, _ in held]
        await eventually_async(lambda: sum(end.done() for end in ends), "15 are closed", lambda done: done == 15)
    for _, writer in held:
        writer.transport.abort()
    await asyncio.gather(*ends, return_exceptions=True)
    await eventually_async(lambda: served.raw(b"GET /sandboxes HTTP/1.0\r\nHost: localhost\r\n\r\n"), "served again")
