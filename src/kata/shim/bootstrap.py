"""What containerd writes on the standard input of `start`, told apart and decoded without a protobuf library.

containerd 1.x sends the runtime's options as `google.protobuf.Any` {1 type_url, 2 value}; 2.x sends
`containerd.runtime.bootstrap.v1.BootstrapParams` {1 instance_id, …, 8 extensions {1 Any}, 9 socket_dir}. The first
field tells: it is the container's id or a type name. `start` is on containerd's critical path, and loading the real
library would cost it several times its whole run time; tests hold this decoder against that library.
"""

from __future__ import annotations

from kata.errors import InvalidArgument

_LENGTH_DELIMITED = 2


class Bootstrap:
    """Attributes:
    options: the serialised `google.protobuf.Any` of the runtime's options, or b"".
    socket_dir: where to put the socket, or "".
    """

    def __init__(self, options: bytes = b"", socket_dir: str = "") -> None:
        self.options = options
        self.socket_dir = socket_dir


def read_bootstrap(data: bytes, container_id: str) -> Bootstrap:
    """Decode standard input; empty input is no options.

    Raises:
        InvalidArgument: it is neither of the two messages.
    """
    if not data:
        return Bootstrap()
    fields = _fields(data)
    first = _last(fields, 1)
    if first != container_id.encode():
        return Bootstrap(options=data)
    extensions = [value for number, value in fields if number == 8]
    options = next((_last(_fields(extension), 1) for extension in extensions), b"")
    return Bootstrap(options, _last(fields, 9).decode(errors="replace"))


def runtime_config(options: bytes) -> tuple[str, bytes]:
    """The path of the configuration file, or its content, that the runtime's options name; "" and b"" if they do not.

    Args:
        options: a serialised `google.protobuf.Any`, in general of `runtimeoptions.v1.Options` {2 path, 3 body}.

    Raises:
        InvalidArgument: it is no such message.
    """
    try:
        packed = _fields(options)
        if _last(packed, 1).rpartition(b"/")[2] != b"runtimeoptions.v1.Options":
            return "", b""
        chosen = _fields(_last(packed, 2))
        return _last(chosen, 2).decode(), _last(chosen, 3)
    except (InvalidArgument, UnicodeDecodeError):
        raise InvalidArgument("runtime options cannot be decoded") from None


def _last(fields: list[tuple[int, bytes]], wanted: int) -> bytes:
    return next((value for number, value in reversed(fields) if number == wanted), b"")


def _fields(data: bytes) -> list[tuple[int, bytes]]:
    """The length-delimited fields of a message; numbers are passed over."""
    fields: list[tuple[int, bytes]] = []
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire_type = tag & 7
        if wire_type == 0:
            _, position = _varint(data, position)
        elif wire_type in (1, 5):
            position += 8 if wire_type == 1 else 4
            if position > len(data):
                raise _malformed()
        elif wire_type == _LENGTH_DELIMITED:
            length, position = _varint(data, position)
            if position + length > len(data):
                raise _malformed()
            fields.append((tag >> 3, data[position : position + length]))
            position += length
        else:
            raise _malformed()
    return fields


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _malformed()


def _malformed() -> InvalidArgument:
    return InvalidArgument("standard input is neither runtime options nor bootstrap parameters")
