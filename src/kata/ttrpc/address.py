"""Unix socket addresses as people write them."""

from __future__ import annotations


def unix_address(path: str) -> str:
    """The address for the socket module: "@name" stands for an abstract socket, all else is a path."""
    return "\0" + path[1:] if path.startswith("@") else path
