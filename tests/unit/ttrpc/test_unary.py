"""Unary calls between the asyncio client and server: answers, errors, deadlines, ends."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kata.ttrpc import CallContext, Client, Code, ConnectionClosed, MessageTooLarge, Server, StatusError, frames
from kata.ttrpc.envelope import (
    Request,
    Response,
    Status,
    decode_request,
    decode_response,
    request_parts,
    response_parts,
)
from tests.support.waiting import eventually_async

if TYPE_CHECKING:
    from tests.unit.ttrpc.conftest import Connected, Peer, RawClient

ECHO = ("test.Service", "Echo")
WAIT = ("test.Service", "Wait")


async def echo(ctx: CallContext, payload: bytes) -> bytes:
    return payload


class Waiter:
    """A handler that waits until it is told to go on, and counts."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.started = asyncio.Semaphore(0)
        self.running = 0
        self.cancelled = 0

    async def __call__(self, ctx: CallContext, payload: bytes) -> bytes:
        self.running += 1
        self.started.release()
        try:
            await self.go.wait()
            return b"waited"
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


async def status_of(call: asyncio.Future[bytes] | asyncio.Task[bytes]) -> tuple[int, str]:
    with pytest.raises(StatusError) as caught:
        await call
    return caught.value.code, caught.value.message


def request(stream_id: int, target: tuple[str, str], payload: bytes = b"", timeout_nano: int = 0) -> bytes:
    parts = request_parts(Request(*target, payload, timeout_nano))
    return frames.encode(stream_id, frames.REQUEST, 0, parts)


def response(stream_id: int, payload: bytes = b"") -> bytes:
    return frames.encode(stream_id, frames.RESPONSE, 0, response_parts(Response(payload=payload)))


async def answer(peer: Peer) -> tuple[int, Response]:
    stream_id, kind, flags, data = await peer.frame()
    assert (kind, flags) == (frames.RESPONSE, 0)
    return stream_id, decode_response(data)


@pytest.mark.parametrize("size", [0, 1, 70_000, frames.MAX_MESSAGE - 100])
async def test_payloads_come_back_as_they_were(connected: Connected, size: int) -> None:
    _, client = await connected({ECHO: echo})
    payload = os.urandom(size)
    assert await client.call(*ECHO, payload, timeout=10) == payload


async def test_answers_in_two_pieces_are_one_message(connected: Connected) -> None:
    async def halved(ctx: CallContext, payload: bytes) -> tuple[bytes, bytes]:
        return (payload[:3], payload[3:]) if payload != b"too large" else (b"x", bytes(frames.MAX_MESSAGE))

    _, client = await connected({ECHO: halved})
    payloads = [os.urandom(size) for size in (0, 1, 3, 4, 70_000, 1 << 20, 1 << 20, 10)]
    calls = [client.call(*ECHO, payload, timeout=10) for payload in payloads]
    assert await asyncio.gather(*calls) == payloads
    with pytest.raises(StatusError) as caught:
        await client.call(*ECHO, b"too large", timeout=10)
    assert caught.value.code == Code.RESOURCE_EXHAUSTED


async def test_context_tells_about_the_call(connected: Connected) -> None:
    seen: list[CallContext] = []
    remaining: list[float | None] = []

    async def note(ctx: CallContext, payload: bytes) -> bytes:
        seen.append(ctx)
        remaining.append(ctx.remaining())
        return b""

    _, client = await connected({ECHO: note})
    await client.call(*ECHO, timeout=5, metadata={"traceparent": "00-1-2-01", "empty": ""})
    await client.call(*ECHO)
    with_timeout, without = seen
    assert (with_timeout.service, with_timeout.method) == ECHO
    assert with_timeout.metadata == {"traceparent": "00-1-2-01", "empty": ""}
    assert with_timeout.timeout == 5
    assert remaining[0] is not None
    assert 0 < remaining[0] <= 5
    assert (without.timeout, remaining[1], without.metadata) == (None, None, {})
    assert without.peer == (os.getpid(), os.getuid(), os.getgid())


async def test_first_value_of_a_repeated_metadata_key_counts(raw_client: RawClient) -> None:
    async def value(ctx: CallContext, payload: bytes) -> bytes:
        return ctx.metadata["k"].encode()

    _, peer = await raw_client({ECHO: value})
    parts = request_parts(Request(*ECHO, metadata=(("k", "first"), ("k", "second"))))
    await peer.send(frames.encode(1, frames.REQUEST, 0, parts))
    assert await answer(peer) == (1, Response(payload=b"first"))


async def test_many_calls_in_flight(connected: Connected) -> None:
    waiter = Waiter()
    _, client = await connected({WAIT: waiter, ECHO: echo})
    waiting = [asyncio.ensure_future(client.call(*WAIT)) for _ in range(500)]
    for _ in waiting:
        await waiter.started.acquire()
    assert await client.call(*ECHO, b"overtakes") == b"overtakes"
    waiter.go.set()
    assert set(await asyncio.gather(*waiting)) == {b"waited"}


async def test_what_is_not_served_is_unimplemented(connected: Connected) -> None:
    _, client = await connected({ECHO: echo})
    for target in (("test.Service", "Nope"), ("nope", "Echo"), ("", "")):
        code, text = await status_of(asyncio.ensure_future(client.call(*target)))
        assert code == Code.UNIMPLEMENTED
        assert f"{target[0]}/{target[1]}" in text


async def test_handlers_errors_become_statuses(connected: Connected, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(ctx: CallContext, payload: bytes) -> bytes:
        match payload:
            case b"status":
                raise StatusError(Code.NOT_FOUND, "no container x", (b"\x0a\x01a",))
            case b"lookup":
                raise KeyError("x")
            case b"cancel":
                raise asyncio.CancelledError
            case b"timeout":
                raise TimeoutError("inner")
            case b"ok":
                raise StatusError(0, "failed with OK")
            case b"long":
                raise StatusError(Code.ABORTED, "x" * (8 << 20))
            case b"surrogate":
                raise StatusError(Code.NOT_FOUND, os.fsdecode(b"no file \xff"))
        return None  # type: ignore[return-value]

    _, client = await connected({ECHO: fail})

    async def failure(payload: bytes) -> tuple[int, str]:
        return await status_of(asyncio.ensure_future(client.call(*ECHO, payload, timeout=5)))

    with pytest.raises(StatusError) as caught:
        await client.call(*ECHO, b"status")
    assert (caught.value.code, caught.value.message, caught.value.details) == (5, "no container x", (b"\x0a\x01a",))
    assert str(caught.value) == "not found: no container x"
    assert caplog.records == []
    assert await failure(b"lookup") == (Code.INTERNAL, "KeyError: 'x'")
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert await failure(b"cancel") == (Code.CANCELLED, "handler was cancelled")
    assert await failure(b"timeout") == (Code.INTERNAL, "TimeoutError: inner")
    assert await failure(b"ok") == (Code.UNKNOWN, "failed with OK")
    assert await failure(b"none") == (Code.INTERNAL, "TypeError: handler returned NoneType instead of bytes")
    assert await failure(b"surrogate") == (Code.NOT_FOUND, "no file ?")
    code, text = await failure(b"long")
    assert (code, set(text)) == (Code.ABORTED, {"x"})


async def test_to_status_chooses_what_the_caller_gets(connected: Connected, caplog: pytest.LogCaptureFixture) -> None:
    def to_status(error: Exception) -> tuple[int, str]:
        if isinstance(error, FileNotFoundError):
            return Code.NOT_FOUND, "mapped"
        raise RuntimeError("bug in to_status")

    async def fail(ctx: CallContext, payload: bytes) -> bytes:
        raise FileNotFoundError if payload else ValueError("odd")

    _, client = await connected({ECHO: fail}, to_status=to_status)
    assert await status_of(asyncio.ensure_future(client.call(*ECHO, b"x"))) == (Code.NOT_FOUND, "mapped")
    assert await status_of(asyncio.ensure_future(client.call(*ECHO))) == (Code.INTERNAL, "odd")
    assert "to_status failed" in caplog.text


async def test_answer_that_is_too_large_fails_that_call(connected: Connected) -> None:
    async def large(ctx: CallContext, payload: bytes) -> bytes:
        return bytes(frames.MAX_MESSAGE)

    _, client = await connected({ECHO: echo, WAIT: large})
    code, text = await status_of(asyncio.ensure_future(client.call(*WAIT)))
    assert code == Code.RESOURCE_EXHAUSTED
    assert "exceeds the maximum of 4194304 bytes" in text
    assert await client.call(*ECHO, b"x") == b"x"


async def test_question_that_is_too_large_is_not_sent(connected: Connected) -> None:
    _, client = await connected({ECHO: echo})
    with pytest.raises(MessageTooLarge):
        await client.call(*ECHO, bytes(frames.MAX_MESSAGE))
    assert await client.call(*ECHO, b"x") == b"x"


async def test_long_names_are_refused_without_harm(connected: Connected) -> None:
    _, client = await connected({ECHO: echo})
    assert (await status_of(asyncio.ensure_future(client.call("s" * 4_000_000, "m"))))[0] == Code.UNIMPLEMENTED
    assert await client.call(*ECHO, b"x") == b"x"


# -- deadlines and cancellation


async def test_server_keeps_the_deadline(raw_client: RawClient) -> None:
    waiter = Waiter()
    _, peer = await raw_client({WAIT: waiter})
    await peer.send(request(1, WAIT, timeout_nano=20_000_000))
    stream_id, outcome = await answer(peer)
    assert (stream_id, outcome.status.code) == (1, Code.DEADLINE_EXCEEDED)
    assert (waiter.running, waiter.cancelled) == (0, 1)


async def test_deadline_that_has_passed_is_refused(raw_client: RawClient) -> None:
    _, peer = await raw_client({ECHO: echo})
    await peer.send(request(1, ECHO, timeout_nano=-1))
    assert (await answer(peer))[1].status.code == Code.DEADLINE_EXCEEDED


async def test_client_keeps_the_deadline(raw_server: tuple[Client, Peer]) -> None:
    client, peer = raw_server
    late = asyncio.ensure_future(client.call(*ECHO, timeout=0.5))
    stream_id, _, _, data = await peer.frame()
    assert decode_request(data).timeout_nano == 500_000_000
    code, text = await status_of(late)
    assert (code, text) == (Code.DEADLINE_EXCEEDED, "test.Service/Echo did not end within 0.5 s")
    await peer.send(response(stream_id, b"late"))
    following = asyncio.ensure_future(client.call(*ECHO, timeout=5))
    await peer.send(response((await peer.frame())[0], b"in time"))
    assert await following == b"in time"


@pytest.mark.parametrize("timeout", [0, -1.0])
async def test_client_sends_nothing_that_is_late_already(raw_server: tuple[Client, Peer], timeout: float) -> None:
    client, peer = raw_server
    assert (await status_of(asyncio.ensure_future(client.call(*ECHO, timeout=timeout))))[0] == Code.DEADLINE_EXCEEDED
    await client.close()
    assert await peer.receive(1) == b""


async def test_a_tiny_timeout_is_not_none_and_a_huge_one_fits(raw_server: tuple[Client, Peer]) -> None:
    client, peer = raw_server
    assert (await status_of(asyncio.ensure_future(client.call(*ECHO, timeout=1e-12))))[0] == Code.DEADLINE_EXCEEDED
    huge = asyncio.ensure_future(client.call(*ECHO, timeout=1e12))
    timeouts = [decode_request((await peer.frame())[3]).timeout_nano]
    assert timeouts in ([1], [2**63 - 1])  # the first call may have been late before it was sent
    if timeouts == [1]:
        assert decode_request((await peer.frame())[3]).timeout_nano == 2**63 - 1
    huge.cancel()


async def test_cancelled_call_leaves_the_others_alone(raw_server: tuple[Client, Peer]) -> None:
    client, peer = raw_server
    first, second = (asyncio.ensure_future(client.call(*ECHO)) for _ in range(2))
    ids = [(await peer.frame())[0] for _ in range(2)]
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await peer.send(response(ids[0], b"late") + response(ids[1], b"kept"))
    assert await second == b"kept"
    assert client._calls == {}


# -- how connections end


async def test_calls_fail_when_the_server_goes(raw_server: tuple[Client, Peer]) -> None:
    client, peer = raw_server
    calls = [asyncio.ensure_future(client.call(*ECHO)) for _ in range(3)]
    await peer.frame()
    before = client.closed
    peer.sock.shutdown(socket.SHUT_RDWR)
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, ConnectionClosed)
    await asyncio.wait_for(client.wait_closed(), 60)
    assert (before, client.closed) == (False, True)
    with pytest.raises(ConnectionClosed):
        await client.call(*ECHO)


async def test_server_that_dies_inside_a_frame_is_the_cause(
    raw_server: tuple[Client, Peer], caplog: pytest.LogCaptureFixture
) -> None:
    client, peer = raw_server
    call = asyncio.ensure_future(client.call(*ECHO))
    await peer.frame()
    await peer.send(response(1, b"never whole")[:-1])
    peer.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionClosed, match="connection ended inside a frame") as caught:
        await call
    assert type(caught.value.cause).__name__ == "RemoteProtocolError"


async def test_server_that_breaks_the_protocol_is_left(
    raw_server: tuple[Client, Peer], caplog: pytest.LogCaptureFixture
) -> None:
    client, peer = raw_server
    call = asyncio.ensure_future(client.call(*ECHO))
    await peer.frame()
    await peer.send(response(99))
    with pytest.raises(ConnectionClosed, match="stream 99"):
        await call
    assert await peer.receive(1) == b""
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_answer_before_a_hang_up_counts(raw_server: tuple[Client, Peer]) -> None:
    client, peer = raw_server
    call = asyncio.ensure_future(client.call(*ECHO))
    await peer.frame()
    await peer.send(response(1, b"last words"))
    peer.sock.shutdown(socket.SHUT_RDWR)
    assert await call == b"last words"


async def test_close_fails_calls_and_may_be_repeated(raw_server: tuple[Client, Peer]) -> None:
    client, peer = raw_server
    call = asyncio.ensure_future(client.call(*ECHO))
    await peer.frame()
    await asyncio.gather(client.close(), client.close())
    await client.close()
    with pytest.raises(ConnectionClosed) as caught:
        await call
    assert caught.value.cause is None
    assert str(caught.value) == "connection closed"
    assert await peer.receive(1) == b""


async def test_close_at_once_closes_the_socket() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        client = await Client.from_socket(ours)
        await client.close()
        assert theirs.recv(1) == b""


async def test_close_does_not_wait_for_a_server_that_does_not_read() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        client = await Client.from_socket(ours)
        call = asyncio.ensure_future(client.call(*ECHO, bytes(4_000_000)))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(60):
            await client.close()
        with pytest.raises(ConnectionClosed):
            await call


async def test_handlers_are_cancelled_when_the_client_goes(raw_client: RawClient) -> None:
    waiter = Waiter()
    server, peer = await raw_client({WAIT: waiter})
    await peer.send(request(1, WAIT) + request(3, WAIT))
    for _ in range(2):
        await waiter.started.acquire()
    peer.sock.close()
    await eventually_async(lambda: server._connections, "the connection's end", lambda left: not left)
    assert (waiter.running, waiter.cancelled) == (0, 2)


async def test_client_that_sends_and_leaves_at_once_leaves_nothing(raw_client: RawClient) -> None:
    server, peer = await raw_client({ECHO: echo})
    await peer.send(request(1, ECHO) + request(3, ECHO))
    peer.sock.close()
    await eventually_async(lambda: server._connections, "the connection's end", lambda left: not left)


async def test_client_that_breaks_the_protocol_is_left(raw_client: RawClient, caplog: pytest.LogCaptureFixture) -> None:
    _, peer = await raw_client({ECHO: echo})
    await peer.send(b"GET / HTTP/1.1\r\n\r\n")
    assert await peer.receive(1) == b""
    assert "protocol error of its client" in caplog.text


async def test_bad_requests_are_answered_and_the_connection_goes_on(raw_client: RawClient) -> None:
    _, peer = await raw_client({ECHO: echo})
    await peer.send(request(2, ECHO))
    assert (await answer(peer))[1].status.code == Code.INVALID_ARGUMENT
    await peer.send(frames.HEADER.pack(5 << 20, 1, frames.REQUEST, 0))
    stream_id, outcome = await answer(peer)  # before the data is sent
    assert (stream_id, outcome.status.code) == (1, Code.RESOURCE_EXHAUSTED)
    await peer.send(bytes(5 << 20) + request(3, ECHO, b"fine"))
    assert await answer(peer) == (3, Response(payload=b"fine"))


async def test_data_on_a_unary_call_ends_it(raw_client: RawClient) -> None:
    waiter = Waiter()
    _, peer = await raw_client({WAIT: waiter, ECHO: echo})
    await peer.send(request(1, WAIT))
    await waiter.started.acquire()
    await peer.send(frames.encode(1, frames.DATA, 0, (b"x",)) + request(3, ECHO))
    assert (await answer(peer))[1].status.code == Code.INVALID_ARGUMENT
    assert (await answer(peer))[0] == 3
    assert waiter.cancelled == 1


async def test_calls_in_flight_are_bounded(raw_client: RawClient) -> None:
    waiter = Waiter()
    _, peer = await raw_client({WAIT: waiter}, max_calls=3)
    await peer.send(b"".join(request(stream_id, WAIT) for stream_id in (1, 3, 5, 7)))
    stream_id, outcome = await answer(peer)
    assert (stream_id, outcome.status) == (7, Status(Code.RESOURCE_EXHAUSTED, "more than 3 calls in flight"))
    waiter.go.set()
    assert [(await answer(peer))[0] for _ in range(3)] == [1, 3, 5]
    await peer.send(request(9, WAIT))
    assert await answer(peer) == (9, Response(payload=b"waited"))


async def test_a_service_that_is_not_limited_answers_all_the_same(raw_client: RawClient) -> None:
    waiter = Waiter()
    _, peer = await raw_client({WAIT: waiter, ("grpc.Health", "Check"): echo}, max_calls=1, unlimited=["grpc.Health"])
    await peer.send(request(1, WAIT) + request(3, ("grpc.Health", "Check"), b"alive"))
    assert await answer(peer) == (3, Response(payload=b"alive"))
    waiter.go.set()
    assert await answer(peer) == (1, Response(payload=b"waited"))


async def test_client_that_does_not_read_is_not_read_from(raw_client: RawClient) -> None:
    """Its answers, even refusals, would pile up; instead its own socket fills."""
    _, peer = await raw_client({ECHO: echo}, max_calls=10)
    sent = blocked = 0
    while blocked < 50:
        try:
            sent += peer.sock.send(request(2 * sent + 1, ECHO)) > 0
            blocked = 0
        except BlockingIOError:
            blocked += 1
            await asyncio.sleep(0.005)
        assert sent < 100_000
    stream_id, outcome = await answer(peer)
    assert (stream_id % 2, outcome.status.code in (Code.OK, Code.RESOURCE_EXHAUSTED)) == (1, True)


# -- the server's own ends


async def test_close_with_grace_lets_calls_end(connected: Connected) -> None:
    waiter = Waiter()
    server, client = await connected({WAIT: waiter, ECHO: echo})
    call = asyncio.ensure_future(client.call(*WAIT))
    await waiter.started.acquire()
    closing = asyncio.ensure_future(server.close(grace=5))
    await asyncio.sleep(0)
    assert await status_of(asyncio.ensure_future(client.call(*ECHO))) == (Code.UNAVAILABLE, "server is closing")
    waiter.go.set()
    assert await call == b"waited"
    await asyncio.wait_for(closing, 30)
    await asyncio.wait_for(client.wait_closed(), 60)


async def test_close_without_grace_cancels(connected: Connected) -> None:
    waiter = Waiter()
    server, client = await connected({WAIT: waiter})
    call = asyncio.ensure_future(client.call(*WAIT))
    await waiter.started.acquire()
    await server.close()
    assert (waiter.running, waiter.cancelled) == (0, 1)
    with pytest.raises(ConnectionClosed):
        await call
    await server.close()


async def test_handler_that_ignores_its_end_does_not_hold_up_the_close(
    connected: Connected, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kata.ttrpc.serving._CANCEL_TIMEOUT_S", 0.05)
    started, release = asyncio.Event(), asyncio.Event()

    async def stubborn(ctx: CallContext, payload: bytes) -> bytes:
        started.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                pass
        return b""

    server, client = await connected({WAIT: stubborn})
    call = asyncio.ensure_future(client.call(*WAIT))
    await started.wait()
    await asyncio.wait_for(server.close(), 60)
    assert "did not end after it was cancelled" in caplog.text
    with pytest.raises(ConnectionClosed):
        await call
    release.set()
    await asyncio.sleep(0.01)


async def test_server_that_closes_serves_no_more_connections() -> None:
    server = Server({ECHO: echo})
    await server.close()
    ours, theirs = socket.socketpair()
    with theirs:
        await server.serve_connection(*await asyncio.open_connection(sock=ours))
        assert theirs.recv(1) == b""


async def test_socket_file_is_private_replaced_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    stale = socket.socket(socket.AF_UNIX)
    with stale:
        stale.bind(str(path))
    server = Server({ECHO: echo})
    await server.serve_unix(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    async with await Client.connect_unix(str(path)) as client:
        assert await client.call(*ECHO, b"x") == b"x"
    await server.close()
    assert not path.exists()


async def test_only_a_socket_is_replaced_and_only_our_own_removed(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    path.write_text("precious")
    server = Server({ECHO: echo})
    with pytest.raises(OSError, match="in use"):
        await server.serve_unix(str(path))
    assert path.read_text() == "precious"
    path.unlink()
    await server.serve_unix(str(path))
    path.unlink()
    path.write_text("another's")
    await server.close()
    assert path.read_text() == "another's"


async def test_abstract_and_ready_made_sockets() -> None:
    server = Server({ECHO: echo})
    await server.serve_unix(f"@ttrpc-test-{os.getpid()}")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        await server.serve_socket(listening.dup())
    async with await Client.connect_unix(f"@ttrpc-test-{os.getpid()}") as client:
        assert await client.call(*ECHO, b"abstract") == b"abstract"
    async with await Client.from_socket(socket.create_connection(("127.0.0.1", port))) as client:
        assert await client.call(*ECHO, b"tcp") == b"tcp"
    await server.close()


async def test_connecting_to_nothing_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await Client.connect_unix(str(tmp_path / "none.sock"))
