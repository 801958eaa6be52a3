"""Unix socket addresses as users write them."""

from __future__ import annotations


def unix_address(path: str) -> str:
    """The address for the socket module: "@name" is an abstract socket, everything else a path (unix(7))."""
    return "\0" + path[1:] if path.startswith("@") else path
