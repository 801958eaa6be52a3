"""The ttrpc protocol with no I/O in it: bytes in, events out, and methods that return the bytes to send.

The caller owns the socket, the clock and the tasks, so a `Connection` works with any of them. It knows the streams and
what may happen on each; it does not know services, handlers or deadlines.

Both sides see a stream in the same state, since only the client opens one and only the server ends one:

    state         the client may send       the server may send
    UNARY         nothing                   one response, which ends the stream
    OPEN          data, close               data; response or close, which end the stream
    HALF_CLOSED   nothing                   data; response or close, which end the stream

Ids increase; after the highest one, which a client that reads a thousand times a second reaches in 25 days, they begin
again at the lowest that is not in use. The protocol does not provide for that, so a server by others refuses it.

A stream that has ended is forgotten. Frames that still arrive for it are dropped silently: the peer may have sent them
before it knew. An error on one stream ends that stream (`StreamRejected`) and not the connection, as in the Go
implementation; a frame that cannot belong to any stream is a `RemoteProtocolError`.
Source: containerd/ttrpc, PROTOCOL.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from kata.ttrpc import frames
from kata.ttrpc.envelope import (
    Request,
    Response,
    Status,
    decode_request,
    decode_response,
    request_parts,
    response_parts,
)
from kata.ttrpc.errors import Code, LocalProtocolError, RemoteProtocolError
from kata.ttrpc.frames import Frame
from kata.ttrpc.wire import MalformedMessage

_MAX_STREAM_ID = 0xFFFF_FFFF
#: The id after the highest one. Not 1, which begins a connection where several share a channel.
_FIRST_ID_AGAIN = 3


class Role(Enum):
    """The client connects and calls; the server accepts and answers."""

    CLIENT = "client"
    SERVER = "server"


class StreamState(Enum):
    """See the table above."""

    UNARY = "unary"
    OPEN = "open"
    HALF_CLOSED = "half-closed"


class RequestReceived(NamedTuple):
    """Server: a call begins. `state` says which kind of call the client makes."""

    stream_id: int
    request: Request
    state: StreamState


class ResponseReceived(NamedTuple):
    """Client: the call ended."""

    stream_id: int
    response: Response


class DataReceived(NamedTuple):
    """One message on a stream."""

    stream_id: int
    payload: bytes


class StreamClosed(NamedTuple):
    """The peer sends nothing more on this stream. For a client the stream has ended, with status OK."""

    stream_id: int


class StreamRejected(NamedTuple):
    """The peer violated the protocol on one stream, which has ended if it existed.

    Attributes:
        status: what was wrong.
        reply: bytes to send to the peer (a server's answer; empty on a client).
    """

    stream_id: int
    status: Status
    reply: bytes


Event = RequestReceived | ResponseReceived | DataReceived | StreamClosed | StreamRejected


class Connection:
    """One side of one connection.

    Args:
        role: which side.
        max_message: largest data of a frame, in bytes, in both directions.
    """

    def __init__(self, role: Role, max_message: int = frames.MAX_MESSAGE) -> None:
        self.role = role
        self._max_message = max_message
        self._decoder = frames.FrameDecoder(max_message)
        self._streams: dict[int, StreamState] = {}
        self._last_id = -1  # the newest stream, whichever side we are
        self._wrapped = False  # whether ids have begun again

    def __contains__(self, stream_id: int) -> bool:
        """Whether the stream exists and has not ended."""
        return stream_id in self._streams

    @property
    def open_streams(self) -> tuple[int, ...]:
        """The streams that have not ended, oldest first."""
        return tuple(self._streams)

    def state(self, stream_id: int) -> StreamState:
        """State of a stream.

        Raises:
            LocalProtocolError: it does not exist, or has ended.
        """
        try:
            return self._streams[stream_id]
        except KeyError:
            raise LocalProtocolError(f"stream {stream_id} is closed") from None

    def sendable(self, stream_id: int) -> bool:
        """Whether this side may send data.

        Raises:
            LocalProtocolError: the stream does not exist, or has ended.
        """
        state = self.state(stream_id)
        return state is StreamState.OPEN or (state is StreamState.HALF_CLOSED and self.role is Role.SERVER)

    # -- receiving

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events in received bytes. Has to be iterated to its end, since the state changes on the way.

        Raises:
            RemoteProtocolError: after the events before it; the connection is unusable then.
        """
        receive = self._at_client if self.role is Role.CLIENT else self._at_server
        for frame in self._decoder.feed(data):
            if frame.type in (frames.REQUEST, frames.RESPONSE, frames.DATA):
                yield from receive(frame)
            elif frame.oversized:
                # Unknown types of a valid size are skipped, for later versions; this is not ttrpc at all.
                raise RemoteProtocolError(f"frame of unknown type {frame.type} and {frame.length} bytes")

    def eof(self) -> None:
        """The peer closed its side.

        Raises:
            RemoteProtocolError: in the middle of a frame.
        """
        if self._decoder.mid_frame:
            raise RemoteProtocolError("connection ended inside a frame")

    def _at_client(self, frame: Frame) -> Iterator[Event]:
        stream_id = frame.stream_id
        if frame.type == frames.REQUEST:
            raise RemoteProtocolError("server sent a request")
        if stream_id % 2 == 0 or self._unopened(stream_id):
            raise RemoteProtocolError(f"server answered on stream {stream_id}, which was never opened")
        state = self._streams.get(stream_id)
        if state is None:
            return
        if frame.oversized:
            yield self._reject(stream_id, self._too_large(frame))
        elif frame.type == frames.DATA:
            yield from self._data(frame, state)
            if frame.flags & frames.REMOTE_CLOSED:
                self._streams.pop(stream_id, None)
        else:
            try:
                response = decode_response(frame.payload)
            except MalformedMessage as error:
                yield self._reject(stream_id, Status(Code.INTERNAL, f"malformed response: {error}"))
            else:
                del self._streams[stream_id]
                yield ResponseReceived(stream_id, response)

    def _at_server(self, frame: Frame) -> Iterator[Event]:
        stream_id = frame.stream_id
        if frame.type == frames.RESPONSE:
            raise RemoteProtocolError("client sent a response")
        if stream_id % 2 == 0:
            yield self._reject(stream_id, Status(Code.INVALID_ARGUMENT, f"stream id {stream_id} is not odd"))
        elif frame.type == frames.REQUEST:
            yield self._request(frame)
        elif self._unopened(stream_id):
            text = f"data on stream {stream_id}, which was never opened"
            yield self._reject(stream_id, Status(Code.INVALID_ARGUMENT, text))
        elif (state := self._streams.get(stream_id)) is not None:
            if frame.oversized:
                yield self._reject(stream_id, self._too_large(frame))
            else:
                yield from self._data(frame, state)
                if frame.flags & frames.REMOTE_CLOSED and stream_id in self._streams:
                    self._streams[stream_id] = StreamState.HALF_CLOSED

    def _request(self, frame: Frame) -> Event:
        stream_id = frame.stream_id
        begins_again = self._last_id - stream_id > _MAX_STREAM_ID // 2 and stream_id not in self._streams
        if stream_id <= self._last_id and not begins_again:
            text = f"stream id {stream_id} is not higher than {self._last_id}"
            return self._reject(stream_id, Status(Code.INVALID_ARGUMENT, text))
        self._last_id = stream_id
        self._wrapped |= begins_again
        if frame.oversized:
            return self._reject(stream_id, self._too_large(frame))
        closed, opened = frame.flags & frames.REMOTE_CLOSED, frame.flags & frames.REMOTE_OPEN
        if closed and opened:
            return self._reject(stream_id, Status(Code.INVALID_ARGUMENT, "request is flagged both closed and open"))
        try:
            request = decode_request(frame.payload)
        except MalformedMessage as error:
            return self._reject(stream_id, Status(Code.INVALID_ARGUMENT, f"malformed request: {error}"))
        state = StreamState.OPEN if opened else StreamState.HALF_CLOSED if closed else StreamState.UNARY
        self._streams[stream_id] = state
        return RequestReceived(stream_id, request, state)

    def _data(self, frame: Frame, state: StreamState) -> Iterator[Event]:
        stream_id = frame.stream_id
        if state is StreamState.UNARY:
            code = Code.INVALID_ARGUMENT if self.role is Role.SERVER else Code.INTERNAL
            yield self._reject(stream_id, Status(code, "data on a unary stream"))
        elif self.role is Role.SERVER and state is StreamState.HALF_CLOSED:
            yield self._reject(stream_id, Status(Code.INVALID_ARGUMENT, "data after the sender closed the stream"))
        else:
            # Without the flag an empty frame is an empty message, which protobuf has plenty of.
            if not frame.flags & frames.NO_DATA:
                yield DataReceived(stream_id, bytes(frame.payload))
            if frame.flags & frames.REMOTE_CLOSED:
                yield StreamClosed(stream_id)

    def _reject(self, stream_id: int, status: Status) -> StreamRejected:
        self._streams.pop(stream_id, None)
        reply = b""
        if self.role is Role.SERVER:
            reply = frames.encode(stream_id, frames.RESPONSE, 0, response_parts(Response(status)))
        return StreamRejected(stream_id, status, reply)

    def _too_large(self, frame: Frame) -> Status:
        text = f"message of {frame.length} bytes exceeds the maximum of {self._max_message} bytes"
        return Status(Code.RESOURCE_EXHAUSTED, text)

    # -- sending

    def request(self, request: Request) -> tuple[int, bytes]:
        """Client: begin a unary call. Returns the stream's id and the frame; frames must be sent in the order of ids.

        Raises:
            MessageTooLarge: the request does not fit into a frame.
            LocalProtocolError: not a client.
        """
        return self._open(request, StreamState.UNARY, 0)

    def open_stream(self, request: Request, *, client_streams: bool) -> tuple[int, bytes]:
        """Client: begin a streaming call, as `request` does.

        Args:
            request: with the first message, or none.
            client_streams: whether data follows the request.

        Raises:
            MessageTooLarge, LocalProtocolError: as `request`.
        """
        if client_streams:
            return self._open(request, StreamState.OPEN, frames.REMOTE_OPEN)
        return self._open(request, StreamState.HALF_CLOSED, frames.REMOTE_CLOSED)

    def respond(self, stream_id: int, response: Response) -> bytes:
        """Server: end the stream with a response. Its tail is not in the frame, and must be sent right after it.

        Raises:
            MessageTooLarge: the stream stays open for a smaller response.
            LocalProtocolError: not a server, or the stream has ended.
        """
        self._require(Role.SERVER)
        self.state(stream_id)
        frame = self._frame(stream_id, frames.RESPONSE, 0, response_parts(response), tail=len(response.tail))
        del self._streams[stream_id]
        return frame

    def send_data(self, stream_id: int, payload: bytes) -> bytes:
        """A frame with one message on a streaming call.

        Raises:
            MessageTooLarge: it does not fit into a frame.
            LocalProtocolError: the stream has ended, is unary, or was closed for sending.
        """
        self._require_sendable(stream_id)
        return self._frame(stream_id, frames.DATA, 0, (payload,))

    def close_send(self, stream_id: int) -> bytes:
        """A frame that ends this side's data. On a server it ends the stream, with status OK.

        The frame never carries a message: the Go server refuses one that does.

        Raises:
            LocalProtocolError: as `send_data`.
        """
        self._require_sendable(stream_id)
        if self.role is Role.SERVER:
            del self._streams[stream_id]
        else:
            self._streams[stream_id] = StreamState.HALF_CLOSED
        return self._frame(stream_id, frames.DATA, frames.REMOTE_CLOSED | frames.NO_DATA, ())

    def forget(self, stream_id: int) -> None:
        """Drop a stream. The peer is not told, as the protocol has no message for that."""
        self._streams.pop(stream_id, None)

    def _open(self, request: Request, state: StreamState, flags: int) -> tuple[int, bytes]:
        self._require(Role.CLIENT)
        stream_id = self._last_id + 2
        begins_again = stream_id > _MAX_STREAM_ID
        if begins_again:
            stream_id = _FIRST_ID_AGAIN
        while stream_id in self._streams:
            stream_id += 2
        frame = self._frame(stream_id, frames.REQUEST, flags, request_parts(request))
        self._last_id = stream_id
        self._wrapped |= begins_again
        self._streams[stream_id] = state
        return stream_id, frame

    def _unopened(self, stream_id: int) -> bool:
        return stream_id > self._last_id and not self._wrapped

    def _require_sendable(self, stream_id: int) -> None:
        if not self.sendable(stream_id):
            raise LocalProtocolError(f"stream {stream_id} is unary or closed for sending")

    def _frame(self, stream_id: int, kind: int, flags: int, parts: Sequence[bytes], *, tail: int = 0) -> bytes:
        return frames.encode(stream_id, kind, flags, parts, tail=tail, max_message=self._max_message)

    def _require(self, role: Role) -> None:
        if self.role is not role:
            raise LocalProtocolError(f"only a {role.value} may do this")
