"""Errors of ttrpc, by whose fault they are.

TtrpcError
├── LocalProtocolError    this side misused the protocol: a bug in the caller
│   └── MessageTooLarge   the caller's message does not fit into a frame
├── RemoteProtocolError   the peer violated the protocol: the connection is unusable
├── StatusError           the call was answered (or ended) with a gRPC status other than OK
└── ConnectionClosed      the connection is gone; whether the call was carried out is unknown
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """gRPC status codes, as numbers on the wire (google.rpc.Code)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class TtrpcError(Exception):
    """Base of all errors of this package."""


class LocalProtocolError(TtrpcError):
    """This side tried something that the protocol does not allow; nothing was sent."""


class MessageTooLarge(LocalProtocolError):
    """A message is larger than a frame may be; nothing was sent.

    Attributes:
        size: bytes that the frame would have carried.
        limit: bytes that it may carry.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"message of {size} bytes exceeds the maximum of {limit} bytes")
        self.size = size
        self.limit = limit


class RemoteProtocolError(TtrpcError):
    """The peer sent something that the protocol does not allow."""


class StatusError(TtrpcError):
    """A call ended with a status other than OK.

    Raised by a client for the peer's answer. A handler raises it to choose the status that its caller gets.

    Attributes:
        code: gRPC status code; an int, because a peer may send one that `Code` does not know.
        message: human-readable text.
        details: google.protobuf.Any messages, serialized.
    """

    def __init__(self, code: int, message: str, details: tuple[bytes, ...] = ()) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.details = details

    def __str__(self) -> str:
        try:
            name = Code(self.code).name.lower().replace("_", " ")
        except ValueError:
            name = f"status {self.code}"
        return f"{name}: {self.message}" if self.message else name


class CallTimeout(StatusError):
    """The client's own deadline for a call passed without an answer: `Code.DEADLINE_EXCEEDED`."""


class ConnectionClosed(TtrpcError):
    """The connection ended.

    Attributes:
        cause: the error that ended it; None if it was closed cleanly, by the peer or by `close()` here.
    """

    def __init__(self, cause: BaseException | None = None) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        if self.cause is None:
            return "connection closed"
        return f"connection closed: {str(self.cause) or type(self.cause).__name__}"
