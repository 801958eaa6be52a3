"""This project's own RPC for port-forwarding: a connection to a port in the guest, carried by a streaming call.

The request names the port; after it both ends run `kata.ttrpc.relay`. A connection that cannot be made ends the call
with UNAVAILABLE.
"""

from __future__ import annotations

import socket

from kata.errors import InvalidArgument

SERVICE = "kata.Forward"
CONNECT = "Connect"

_MAX_REQUEST = 64


def destination(address: str, port: int) -> bytes:
    """The request for a connection to a TCP port at an IP address."""
    return f"{port} {address}".encode()


def parse_destination(request: bytes) -> tuple[str, int]:
    """Address and port of a request.

    Raises:
        InvalidArgument: they are invalid.
    """
    port, _, address = request[:_MAX_REQUEST].decode("ascii", "replace").partition(" ")
    if not (port.isdecimal() and 0 < int(port) < 1 << 16):
        raise InvalidArgument(f"invalid TCP port in {request[:_MAX_REQUEST]!r}")
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    except (OSError, ValueError):  # a null byte is a ValueError
        raise InvalidArgument(f"invalid IP address in {request[:_MAX_REQUEST]!r}") from None
    return address, int(port)
