"""The protocol without I/O: two connections that feed each other, and peers that misbehave."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.ttrpc import frames
from kata.ttrpc.connection import (
    Connection,
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    Role,
    StreamClosed,
    StreamRejected,
    StreamState,
)
from kata.ttrpc.envelope import Request, Response, Status, request_parts, response_parts
from kata.ttrpc.errors import Code, LocalProtocolError, MessageTooLarge, RemoteProtocolError

CALL = Request("svc", "Do", b"in")


def pair() -> tuple[Connection, Connection]:
    return Connection(Role.CLIENT), Connection(Role.SERVER)


def feed(connection: Connection, data: bytes) -> list[Event]:
    """Byte by byte, so that each test is also one about pieces."""
    return [event for position in range(len(data)) for event in connection.feed(data[position : position + 1])]


def feed_to_error(connection: Connection, pieces: list[bytes]) -> tuple[list[Event], str]:
    """The events, and the text of the protocol error that ended them, or ""."""
    events: list[Event] = []
    try:
        for piece in pieces:
            for event in connection.feed(piece):
                events.append(event)  # noqa: PERF402 - a comprehension would lose what came before the error
    except RemoteProtocolError as error:
        return events, str(error)
    return events, ""


def frame(stream_id: int, kind: int, flags: int = 0, payload: bytes = b"") -> bytes:
    return frames.encode(stream_id, kind, flags, (payload,))


def request_frame(stream_id: int, flags: int = 0) -> bytes:
    return frames.encode(stream_id, frames.REQUEST, flags, request_parts(CALL))


def test_unary_call() -> None:
    client, server = pair()
    stream_id, wire = client.request(CALL)
    assert feed(server, wire) == [RequestReceived(1, CALL, StreamState.UNARY)]
    assert stream_id in client
    assert 1 in server
    answer = Response(payload=b"out")
    assert feed(client, server.respond(1, answer)) == [ResponseReceived(1, answer)]
    assert 1 not in client
    assert 1 not in server


def test_calls_are_answered_in_any_order() -> None:
    client, server = pair()
    wire = b"".join(client.request(CALL)[1] for _ in range(3))
    assert [event.stream_id for event in feed(server, wire)] == [1, 3, 5]
    answers = b"".join(server.respond(stream_id, Response()) for stream_id in (5, 1, 3))
    assert [event.stream_id for event in feed(client, answers)] == [5, 1, 3]


def test_streaming_in_both_directions() -> None:
    client, server = pair()
    _, wire = client.open_stream(CALL, client_streams=True)
    assert feed(server, wire) == [RequestReceived(1, CALL, StreamState.OPEN)]
    assert feed(server, client.send_data(1, b"up")) == [DataReceived(1, b"up")]
    assert feed(server, client.send_data(1, b"")) == [DataReceived(1, b"")]  # an empty message is one
    assert feed(client, server.send_data(1, b"down")) == [DataReceived(1, b"down")]
    assert feed(server, client.close_send(1)) == [StreamClosed(1)]
    assert client.state(1) is server.state(1) is StreamState.HALF_CLOSED
    assert feed(client, server.send_data(1, b"more")) == [DataReceived(1, b"more")]
    assert feed(client, server.close_send(1)) == [StreamClosed(1)]
    assert 1 not in client
    assert 1 not in server


def test_server_streaming_begins_half_closed() -> None:
    client, server = pair()
    _, wire = client.open_stream(CALL, client_streams=False)
    assert feed(server, wire) == [RequestReceived(1, CALL, StreamState.HALF_CLOSED)]
    assert client.state(1) is StreamState.HALF_CLOSED


def test_response_ends_a_stream_whatever_the_client_still_sends() -> None:
    client, server = pair()
    feed(server, client.open_stream(CALL, client_streams=True)[1])
    late = client.send_data(1, b"late") + client.close_send(1)
    failed = Response(Status(Code.ABORTED, "enough"))
    assert feed(client, server.respond(1, failed)) == [ResponseReceived(1, failed)]
    assert feed(server, late) == []


def test_last_data_may_carry_a_message() -> None:
    client, server = pair()
    feed(server, client.open_stream(CALL, client_streams=True)[1])
    assert feed(server, frame(1, frames.DATA, frames.REMOTE_CLOSED, b"x")) == [DataReceived(1, b"x"), StreamClosed(1)]
    assert feed(client, frame(1, frames.DATA, frames.REMOTE_CLOSED, b"y")) == [DataReceived(1, b"y"), StreamClosed(1)]


def test_forgotten_stream_drops_what_is_late() -> None:
    client, server = pair()
    feed(server, client.request(CALL)[1] + client.request(CALL)[1])
    client.forget(1)
    wire = server.respond(1, Response(payload=b"late")) + server.respond(3, Response(payload=b"kept"))
    assert feed(client, wire) == [ResponseReceived(3, Response(payload=b"kept"))]


# -- our own mistakes


@pytest.mark.parametrize(
    "misuse",
    [
        lambda client, server: server.request(CALL),
        lambda client, server: client.respond(1, Response()),
        lambda client, server: server.respond(9, Response()),
        lambda client, server: client.send_data(9, b""),
        lambda client, server: client.send_data(1, b""),
        lambda client, server: server.close_send(1),
        lambda client, server: client.send_data(3, b""),
        lambda client, server: client.close_send(3),
    ],
)
def test_misuse_is_a_local_error(misuse: Callable[[Connection, Connection], object]) -> None:
    client, server = pair()
    wire = client.request(CALL)[1]  # stream 1 is unary, stream 3 is closed for sending by the client
    wire += client.open_stream(CALL, client_streams=False)[1]
    feed(server, wire)
    with pytest.raises(LocalProtocolError):
        misuse(client, server)
    assert feed(client, server.respond(1, Response())) == [ResponseReceived(1, Response())]


def test_messages_that_are_too_large_are_not_sent_and_harm_nothing() -> None:
    client, server = Connection(Role.CLIENT, 100), Connection(Role.SERVER, 100)
    with pytest.raises(MessageTooLarge):
        client.request(Request("s", "M", bytes(100)))
    feed(server, client.request(CALL)[1])
    with pytest.raises(MessageTooLarge):
        server.respond(1, Response(payload=bytes(100)))
    with pytest.raises(MessageTooLarge):
        server.respond(1, Response(payload=b"x", tail=bytes(99)))
    assert 1 in server
    assert feed(client, server.respond(1, Response())) == [ResponseReceived(1, Response())]


def test_stream_ids_begin_again_at_those_not_in_use() -> None:
    client, server = pair()
    for last in (1, 3, 5):  # 1 and 3 have ended
        stream_id, wire = client.request(CALL)
        assert (stream_id, len(feed(server, wire))) == (last, 1)
    for ended in (1, 3):
        feed(client, server.respond(ended, Response(payload=b"out")))
    client._last_id = server._last_id = 0xFFFF_FFFD
    ids = []
    for _ in range(4):
        stream_id, wire = client.request(CALL)
        (event,) = feed(server, wire)
        assert isinstance(event, RequestReceived)
        ids.append(stream_id)
    assert ids == [0xFFFF_FFFF, 3, 7, 9], "5 is in use, and 1 begins a connection"
    for stream_id in (*ids, 5):
        (answered,) = feed(client, server.respond(stream_id, Response(payload=b"out")))
        assert answered == ResponseReceived(stream_id, Response(payload=b"out"))


def test_what_comes_late_for_a_stream_before_the_new_beginning_is_dropped() -> None:
    client, server = pair()
    client._last_id = server._last_id = 0xFFFF_FFFD
    last, wire = client.open_stream(CALL, client_streams=True)
    feed(server, wire)
    late = client.send_data(last, b"late")
    ended = server.respond(last, Response())
    stray = frame(last, frames.DATA, 0, b"stray")
    feed(client, ended)
    feed(server, client.request(CALL)[1])
    assert feed(server, late) == []
    assert feed(client, stray) == []


# -- a client that misbehaves: the stream is refused, the connection goes on

BAD_REQUESTS = {
    "even id": (request_frame(2), 2, Code.INVALID_ARGUMENT, "not odd"),
    "even id of data": (frame(2, frames.DATA), 2, Code.INVALID_ARGUMENT, "not odd"),
    "id zero": (request_frame(0), 0, Code.INVALID_ARGUMENT, "not odd"),
    "id used again": (request_frame(7), 7, Code.INVALID_ARGUMENT, "not higher"),
    "id going down": (request_frame(5), 5, Code.INVALID_ARGUMENT, "not higher"),
    "data on a unary stream": (frame(7, frames.DATA), 7, Code.INVALID_ARGUMENT, "unary"),
    "data on a stream that never was": (frame(11, frames.DATA), 11, Code.INVALID_ARGUMENT, "never opened"),
    "malformed envelope": (frame(9, frames.REQUEST, 0, b"\x0a"), 9, Code.INVALID_ARGUMENT, "malformed request"),
    "open and closed": (request_frame(9, 3), 9, Code.INVALID_ARGUMENT, "both closed and open"),
    "oversized": (frame(9, frames.REQUEST, 0, bytes(2000)), 9, Code.RESOURCE_EXHAUSTED, "2000 bytes"),
    "oversized data": (frame(7, frames.DATA, 0, bytes(2000)), 7, Code.RESOURCE_EXHAUSTED, "2000 bytes"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_server_refuses_the_stream_and_goes_on(name: str) -> None:
    wire, stream_id, code, text = BAD_REQUESTS[name]
    server = Connection(Role.SERVER, 1000)
    feed(server, request_frame(7))
    (event,) = feed(server, wire)
    assert isinstance(event, StreamRejected)
    assert (event.stream_id, event.status.code) == (stream_id, code)
    assert text in event.status.message
    assert stream_id not in server
    assert event.reply == frames.encode(stream_id, frames.RESPONSE, 0, response_parts(Response(event.status)))
    assert feed(server, request_frame(13)) == [RequestReceived(13, CALL, StreamState.UNARY)]


def test_data_after_close_is_refused() -> None:
    client, server = pair()
    feed(server, client.open_stream(CALL, client_streams=True)[1] + client.close_send(1))
    (event,) = feed(server, frame(1, frames.DATA, 0, b"x"))
    assert isinstance(event, StreamRejected)
    assert 1 not in server


# -- a server that misbehaves


def test_client_loses_one_call_by_a_malformed_answer() -> None:
    client = Connection(Role.CLIENT, 1000)
    for _ in range(4):
        client.request(CALL)
    wire = frame(1, frames.RESPONSE, 0, b"\x0a") + frame(3, frames.DATA) + frame(5, frames.RESPONSE, 0, bytes(2000))
    events = feed(client, wire)
    codes = [(event.stream_id, event.status.code) for event in events if isinstance(event, StreamRejected)]
    assert codes == [(1, Code.INTERNAL), (3, Code.INTERNAL), (5, Code.RESOURCE_EXHAUSTED)]
    assert len(events) == 3
    assert feed(client, frame(7, frames.RESPONSE)) == [ResponseReceived(7, Response())]


@pytest.mark.parametrize(
    ("role", "wire", "text"),
    [
        (Role.CLIENT, request_frame(1), "server sent a request"),
        (Role.CLIENT, frame(3, frames.RESPONSE), "never opened"),
        (Role.CLIENT, frame(3, frames.DATA), "never opened"),
        (Role.CLIENT, frame(2, frames.RESPONSE), "never opened"),
        (Role.CLIENT, frame(0, frames.RESPONSE), "never opened"),
        (Role.SERVER, frame(1, frames.RESPONSE), "client sent a response"),
        (Role.SERVER, b"GET / HTTP/1.1\r\n", "unknown type 84"),
        (Role.CLIENT, b"HTTP/1.1 400 Bad Request\r\n", "unknown type"),
    ],
)
def test_frames_that_belong_to_no_stream_break_the_connection(role: Role, wire: bytes, text: str) -> None:
    connection = Connection(role)
    if role is Role.CLIENT:
        connection.request(CALL)
    with pytest.raises(RemoteProtocolError, match=text):
        feed(connection, wire)


def test_events_before_the_error_are_delivered() -> None:
    server = Connection(Role.SERVER)
    events, error = feed_to_error(server, [request_frame(1) + frame(1, frames.RESPONSE)])
    assert events == [RequestReceived(1, CALL, StreamState.UNARY)]
    assert error == "client sent a response"


@pytest.mark.parametrize("role", Role)
def test_frame_types_of_later_versions_are_passed_over(role: Role) -> None:
    connection = Connection(role)
    assert feed(connection, frame(1, 4, 0xFF, b"later") + frame(2, 0)) == []


def test_eof_between_frames_is_fine_and_inside_one_is_not() -> None:
    wire = request_frame(1)
    for cut in range(len(wire) + 1):
        server = Connection(Role.SERVER)
        feed(server, wire[:cut])
        if cut in (0, len(wire)):
            server.eof()
        else:
            with pytest.raises(RemoteProtocolError, match="inside a frame"):
                server.eof()
    oversized = Connection(Role.SERVER, 10)
    feed(oversized, frame(1, frames.REQUEST, 0, bytes(20))[:-1])
    with pytest.raises(RemoteProtocolError, match="inside a frame"):
        oversized.eof()


# -- anything at all


FRAME = st.builds(
    frame,
    st.one_of(st.integers(0, 8), st.integers(0, 2**32 - 1)),
    st.integers(0, 5),
    st.integers(0, 255),
    st.one_of(
        st.binary(max_size=80),
        st.just(b"".join(request_parts(CALL))),
        st.just(b"".join(response_parts(Response(Status(5, "no"), b"x")))),
    ),
)


@given(st.sampled_from(Role), st.lists(st.one_of(FRAME, st.binary(max_size=30)), max_size=12))
def test_no_input_does_more_than_break_the_protocol(role: Role, chunks: list[bytes]) -> None:
    connection = Connection(role, 64)
    if role is Role.CLIENT:
        connection.request(CALL)
        connection.open_stream(CALL, client_streams=True)
        connection.open_stream(CALL, client_streams=False)
    open_before = 3 if role is Role.CLIENT else 0
    try:
        for chunk in chunks:
            for event in connection.feed(chunk):
                if isinstance(event, RequestReceived):
                    open_before += 1
        connection.eof()
    except RemoteProtocolError:
        pass
    assert len(connection._streams) <= open_before


@given(st.lists(FRAME, max_size=12), st.data())
def test_pieces_do_not_matter_for_what_is_understood(chunks: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(chunks)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    pieces = [wire[start:end] for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert feed_to_error(Connection(Role.SERVER), pieces) == feed_to_error(Connection(Role.SERVER), [wire])
