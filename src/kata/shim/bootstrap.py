"""What containerd writes on the standard input of `start`, told apart and decoded without a protobuf library.

containerd 1.x sends the runtime's options as `google.protobuf.Any` {1 type_url, 2 value}; 2.x sends
`containerd.runtime.bootstrap.v1.BootstrapParams` {1 instance_id, …, 8 extensions {1 Any}, 9 socket_dir}. The first
field tells: it is the container's id or a type name. `start` is on containerd's critical path, and loading the real
library would cost it several times its whole run time; tests hold this decoder against that library.
"""

from __future__ import annotations

from kata.errors import InvalidArgument

#: More than containerd's messages have by far.
_MAX_FIELDS = 1024


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
    message = _fields(data)
    first = _last(message, 1)
    if first != container_id.encode():
        return Bootstrap(options=data)
    extensions = [value for number, value in message if number == 8]
    options = next((_last(_fields(extension), 1) for extension in extensions), b"")
    return Bootstrap(options, _last(message, 9).decode(errors="replace"))


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


def _last(message: list[tuple[int, bytes]], wanted: int) -> bytes:
    return next((value for number, value in reversed(message) if number == wanted), b"")


def _fields(data: bytes) -> list[tuple[int, bytes]]:
    """The length-delimited fields of a message; numbers are skipped."""
    # Not among the imports: in general containerd 1.x writes nothing.
    from kata.ttrpc.wire import MalformedMessage, fields

    try:
        return [(number, bytes(value)) for number, value in fields(data, _MAX_FIELDS) if not isinstance(value, int)]
    except MalformedMessage:
        raise InvalidArgument("standard input is neither runtime options nor bootstrap parameters") from None
