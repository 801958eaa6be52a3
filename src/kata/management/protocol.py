"""What server and client of the management socket agree on: names, limits, and errors as status codes."""

from __future__ import annotations

from kata.errors import Code, KataError, from_code

#: The socket, in the sandbox's state directory; Kata's name for it.
SOCKET = "shim-monitor.sock"
#: The file in the bundle of the sandbox's first container that has the socket's URL; Kata's name, too.
ADDRESS_FILE = "monitor_address"

#: Bytes of a request's first line and headers together, and of its body.
MAX_HEADERS = 16 << 10
MAX_BODY = 1 << 20

_STATUS = {
    Code.INVALID_ARGUMENT: 400,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.FAILED_PRECONDITION: 409,
    Code.ALREADY_EXISTS: 409,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.RESOURCE_EXHAUSTED: 503,
    Code.DEADLINE_EXCEEDED: 504,
}
#: The error of a status, where several have the same: the first one above. Those of the server itself come last.
_CODES = {status: code for code, status in reversed(_STATUS.items())} | {
    405: Code.INVALID_ARGUMENT,
    413: Code.INVALID_ARGUMENT,
    431: Code.INVALID_ARGUMENT,
}


def status_of(error: KataError) -> int:
    """The HTTP status code for an error; 500 for those that are nobody's but the server's fault."""
    return _STATUS.get(error.code, 500)


def error_of(status: int, message: str, hint: str | None) -> KataError:
    """The error that an answer with a status code from 400 on stands for."""
    error = from_code(_CODES.get(status, Code.INTERNAL), message)
    error.hint = hint
    return error
