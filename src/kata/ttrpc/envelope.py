"""The two messages that every ttrpc call is wrapped in, encoded by hand: Request and Response.

    Request  { string service = 1; string method = 2; bytes payload = 3; int64 timeout_nano = 4;
               repeated KeyValue { string key = 1; string value = 2; } metadata = 5; }
    Response { google.rpc.Status { int32 code = 1; string message = 2; repeated Any details = 3; } status = 1;
               bytes payload = 2; }

Encoding by hand keeps the package free of dependencies and bounds the cost of a hostile envelope: besides the frame's
size, the number of fields is limited, since each costs time and memory. Source: containerd/ttrpc, request.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kata.ttrpc.wire import MalformedMessage, fields, varint

#: Fields of a message, and therefore metadata pairs of a request.
MAX_FIELDS = 1024
_MAX_NESTED_FIELDS = 64


class Request(NamedTuple):
    """The request of a call.

    Attributes:
        service: full name of the protobuf service, e.g. "grpc.Health".
        method: name of the RPC, e.g. "Check".
        payload: the serialized request message.
        timeout_nano: nanoseconds that the caller waits; 0 means no limit.
        metadata: pairs in wire order; a key may occur more than once.
    """

    service: str
    method: str
    payload: bytes = b""
    timeout_nano: int = 0
    metadata: tuple[tuple[str, str], ...] = ()


class Status(NamedTuple):
    """google.rpc.Status. `details` are google.protobuf.Any messages, serialized."""

    code: int = 0
    message: str = ""
    details: tuple[bytes, ...] = ()


class Response(NamedTuple):
    """How a call ended. An absent status is OK.

    Attributes:
        payload: the serialized response message.
        tail: the end of a large message: it follows `payload` on the wire without being copied. A received response
            has none.
    """

    status: Status = Status()
    payload: bytes = b""
    tail: bytes = b""


def metadata_pairs(metadata: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """Metadata as `Request` holds it."""
    return tuple(metadata.items()) if metadata else ()


def request_parts(request: Request) -> list[bytes]:
    """The encoded request, in pieces to be joined, so that the payload is copied only once."""
    parts = [_text(0x0A, request.service), _text(0x12, request.method)]
    if request.payload:
        parts += (b"\x1a", varint(len(request.payload)), request.payload)
    if request.timeout_nano:
        parts += (b"\x20", varint(request.timeout_nano & 0xFFFF_FFFF_FFFF_FFFF))
    for key, value in request.metadata:
        pair = _text(0x0A, key) + _text(0x12, value)
        parts += (b"\x2a", varint(len(pair)), pair)
    return parts


def response_parts(response: Response) -> list[bytes]:
    """The encoded response without its tail, in pieces to be joined.

    The status is always present: old Go clients require it.
    """
    code, message, details = response.status
    status = b""
    if code:
        status = b"\x08" + varint(code & 0xFFFF_FFFF_FFFF_FFFF)
    status += _text(0x12, message)
    for detail in details:
        status += b"\x1a" + varint(len(detail)) + detail
    parts = [b"\x0a", varint(len(status)), status]
    if length := len(response.payload) + len(response.tail):
        parts += (b"\x12", varint(length), response.payload)
    return parts


def decode_request(data: bytes | memoryview) -> Request:
    """Decode a request.

    Raises:
        MalformedMessage: it is not a request, or has too many fields.
    """
    service = method = ""
    payload: bytes | memoryview = b""
    timeout_nano = 0
    metadata = []
    for number, value in fields(data, MAX_FIELDS):
        if isinstance(value, int):
            if number == 4:
                timeout_nano = _signed(value, 64)
        elif number == 1:
            service = _string(value)
        elif number == 2:
            method = _string(value)
        elif number == 3:
            payload = value
        elif number == 5:
            metadata.append(_key_value(value))
    return Request(service, method, bytes(payload), timeout_nano, tuple(metadata))


def decode_response(data: bytes | memoryview) -> Response:
    """Decode a response.

    Raises:
        MalformedMessage: it is not a response, or has too many fields.
    """
    code = 0
    message = ""
    details: list[bytes] = []
    payload: bytes | memoryview = b""
    for number, value in fields(data, MAX_FIELDS):
        if isinstance(value, int):
            continue
        if number == 1:  # a nested message that comes twice is merged
            for inner, part in fields(value, _MAX_NESTED_FIELDS):
                if isinstance(part, int):
                    if inner == 1:
                        code = _signed(part, 32)
                elif inner == 2:
                    message = _string(part)
                elif inner == 3:
                    details.append(bytes(part))
        elif number == 2:
            payload = value
    return Response(Status(code, message, tuple(details)), bytes(payload))


def _key_value(data: memoryview) -> tuple[str, str]:
    key = text = ""
    for number, value in fields(data, _MAX_NESTED_FIELDS):
        if not isinstance(value, int):
            if number == 1:
                key = _string(value)
            elif number == 2:
                text = _string(value)
    return key, text


def _text(tag: int, text: str) -> bytes:
    if not text:
        return b""
    # Texts of errors quote file names, and those need not be Unicode.
    data = text.encode("utf-8", "replace")
    return bytes((tag,)) + varint(len(data)) + data


def _string(value: memoryview) -> str:
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise MalformedMessage("string is not UTF-8") from None


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value
