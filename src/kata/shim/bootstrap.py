"""What containerd writes to the standard input of `start`, decoded without a protobuf library.

containerd sends the runtime's options as `google.protobuf.Any` {1 type_url, 2 value}; from 2.3 on it sends
`containerd.runtime.bootstrap.v1.BootstrapParams` {1 instance_id, …, 8 extensions {1 Any}, 9 socket_dir}. The first
field tells them apart: it is the container's id or a type name. containerd waits for `start`, and importing the library
would take several times as long as all of it; tests compare this decoder with the library.
"""

from __future__ import annotations

from kata.errors import InvalidArgument

#: More than containerd's messages have by far.
_MAX_FIELDS = 1024


class Bootstrap:
    """What containerd tells a new shim.

    Attributes:
        options: the serialised `google.protobuf.Any` of the runtime's options, or b"".
        socket_dir: the directory for the shim's socket, or "".
        parameters: whether it sent bootstrap parameters, and so reads an answer in JSON.
    """

    def __init__(self, options: bytes = b"", socket_dir: str = "", *, parameters: bool = False) -> None:
        self.options = options
        self.socket_dir = socket_dir
        self.parameters = parameters


def read_bootstrap(data: bytes, container_id: str) -> Bootstrap:
    """Decode standard input; empty input means no options.

    Args:
        data: standard input.
        container_id: as on the command line.

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
    return Bootstrap(options, _last(message, 9).decode(errors="replace"), parameters=True)


def runtime_config(options: bytes) -> tuple[str, bytes]:
    """The configuration that the runtime's options name: a file's path, or its content; "" and b"" if they name none.

    Args:
        options: a serialised `google.protobuf.Any`, usually of `runtimeoptions.v1.Options` {2 path, 3 body}.

    Raises:
        InvalidArgument: it is not an Any.
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
    """Return the length-delimited fields of a message, as (number, value); others are skipped.

    Raises:
        InvalidArgument: it is not a message.
    """
    # Not among the imports: containerd 1.x usually writes nothing.
    from kata.ttrpc.wire import MalformedMessage, fields

    try:
        return [(number, bytes(value)) for number, value in fields(data, _MAX_FIELDS) if not isinstance(value, int)]
    except MalformedMessage:
        raise InvalidArgument("standard input is neither runtime options nor bootstrap parameters") from None
