"""Peers that send anything at all, against the real client and server: nothing hangs, nothing breaks."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kata.ttrpc import CallContext, Client, ConnectionClosed, Server, StatusError, Stream, StreamHandler, frames
from kata.ttrpc.envelope import Request, Response, Status, request_parts, response_parts

UNARY, STREAM = ("s", "Unary"), ("s", "Stream")


async def unary(ctx: CallContext, payload: bytes) -> bytes:
    return payload


async def stream_back(ctx: CallContext, stream: Stream) -> None:
    async for message in stream:
        await stream.send(message)


def plausible(*payloads: bytes) -> st.SearchStrategy[bytes]:
    """Frames that are right in most of their parts."""
    return st.builds(
        lambda stream_id, kind, flags, payload: frames.encode(stream_id, kind, flags, (payload,)),
        st.integers(0, 9),
        st.integers(1, 4),
        st.integers(0, 7),
        st.one_of(st.sampled_from(payloads), st.binary(max_size=20)),
    )


REQUESTS = plausible(
    b"",
    b"".join(request_parts(Request(*UNARY, b"x"))),
    b"".join(request_parts(Request(*STREAM, b"x"))),
    b"".join(request_parts(Request(*UNARY, b"x", 1))),
    b"".join(request_parts(Request("no", "No"))),
    bytes(600),
)
RESPONSES = plausible(
    b"",
    b"".join(response_parts(Response(payload=b"x"))),
    b"".join(response_parts(Response(Status(5, "no")))),
    bytes(600),
)

quick = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@quick
@given(st.lists(st.one_of(REQUESTS, st.binary(max_size=30)), max_size=20).map(b"".join), st.booleans())
def test_server_bears_any_client(caplog: pytest.LogCaptureFixture, wire: bytes, patient: bool) -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            server = Server({UNARY: unary, STREAM: StreamHandler(stream_back)}, max_message=512, max_calls=3)
            serving = asyncio.create_task(server.serve_connection(*await asyncio.open_connection(sock=ours)))
            theirs.sendall(wire)
            if patient:
                await asyncio.sleep(0.002)
            theirs.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(60):
                await serving
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@quick
@given(st.lists(st.one_of(RESPONSES, st.binary(max_size=30)), max_size=20).map(b"".join))
def test_client_bears_any_server(caplog: pytest.LogCaptureFixture, wire: bytes) -> None:
    async def stream(client: Client) -> None:
        async with client.stream(*STREAM) as stream:
            async for _ in stream:
                pass

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours)
            client = Client(reader, writer, max_message=512, max_queue=300)
            calls = [asyncio.ensure_future(call) for call in (client.call(*UNARY), client.call(*UNARY), stream(client))]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            theirs.sendall(wire)
            theirs.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(60):
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
                await client.close()
            assert all(isinstance(o, bytes | StatusError | ConnectionClosed | None) for o in outcomes), outcomes
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
