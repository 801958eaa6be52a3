"""Protobuf's wire format, as far as it is written and read by hand: varints, and the fields of a message.

Source: https://protobuf.dev/programming-guides/encoding/. The shim's `start` and `delete` import this file because
they have no time to load a protobuf library, so it imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_FIELD_NUMBER = (1 << 29) - 1


class MalformedMessage(ValueError):
    """Bytes that are no such message, or more of it than is accepted."""


def varint(value: int) -> bytes:
    """The encoding of a number that is not negative."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def fields(data: bytes | memoryview, limit: int) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: (number, value), where a value is a varint's or the bytes of a length-delimited field.

    Fields of fixed width are skipped, groups are refused.

    Args:
        data: the message.
        limit: fields that are accepted at most: each costs time, and the sender may be hostile.

    Raises:
        MalformedMessage: when the iteration comes to what is none, or to one field too many.
    """
    view = memoryview(data)
    end = len(view)
    position = 0
    while position < end:
        if limit == 0:
            raise MalformedMessage("message has too many fields")
        limit -= 1
        tag, position = _read_varint(view, position)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number <= _MAX_FIELD_NUMBER:
            raise MalformedMessage(f"field number {number} is out of range")
        if wire_type == _VARINT:
            scalar, position = _read_varint(view, position)
            yield number, scalar
            continue
        if wire_type == _BYTES:
            size, position = _read_varint(view, position)
        elif wire_type in (_FIXED32, _FIXED64):
            size = 4 if wire_type == _FIXED32 else 8
        else:
            raise MalformedMessage(f"wire type {wire_type} is not accepted")
        if size > end - position:
            raise MalformedMessage("field is longer than its message")
        if wire_type == _BYTES:
            yield number, view[position : position + size]
        position += size


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    result = shift = 0
    try:
        while True:
            byte = view[position]
            position += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result & 0xFFFF_FFFF_FFFF_FFFF, position
            shift += 7
            if shift == 70:
                raise MalformedMessage("varint is longer than 10 bytes")
    except IndexError:
        raise MalformedMessage("message ends inside a varint") from None
