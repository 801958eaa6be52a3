"""Where the agent can be reached: the address forms, and listening on them.

virtio-serial://NAME    the port called NAME; needs no module on the host, survives a restore
vsock://-1:PORT         Kata's default (any context id)
unix:///PATH, unix://@NAME   a Unix socket, or an abstract one: tests, and agents outside of a VM
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kata.agent.virtio_serial import Serve, VirtioSerialPort, find_port
from kata.errors import InvalidArgument

#: How long the driver may take to announce its ports after boot.
_PORT_TIMEOUT_S = 10.0
_BACKLOG = 16


class Address(NamedTuple):
    """A parsed address: `scheme`, and what follows it."""

    scheme: str
    target: str
    port: int = 0


def parse(text: str) -> Address:
    """Parse an address.

    Raises:
        InvalidArgument: it has none of the forms above.
    """
    scheme, separator, rest = text.partition("://")
    if separator and rest:
        if scheme == "virtio-serial":
            return Address(scheme, rest)
        if scheme == "unix" and rest[0] in "/@":
            return Address(scheme, rest)
        if scheme == "vsock":
            cid, _, port = rest.partition(":")
            if cid in ("-1", str(socket.VMADDR_CID_ANY)) and port.isdecimal() and int(port) < socket.VMADDR_PORT_ANY:
                return Address(scheme, cid, int(port))
    raise InvalidArgument(
        f"invalid agent address {text!r}",
        hint="use virtio-serial://NAME, vsock://-1:PORT, unix:///PATH or unix://@NAME",
    )


async def listen(text: str, serve: Serve, *, framed: bool = True) -> Callable[[], None]:
    """Serve every connection to an address.

    Args:
        text: the address.
        serve: called with reader and writer of each connection.
        framed: see VirtioSerialPort.

    Returns:
        A function that stops listening.

    Raises:
        InvalidArgument: invalid address.
        NotFound: no such virtio-serial port.
        OSError: the socket cannot be bound.
    """
    address = parse(text)
    if address.scheme == "virtio-serial":
        return VirtioSerialPort(find_port(address.target, _PORT_TIMEOUT_S), serve, framed=framed).close
    listener = _bind(address)
    path = address.target if address.target.startswith("/") else ""
    try:
        if address.scheme == "unix":
            server = await asyncio.start_unix_server(serve, sock=listener)
        else:
            server = await asyncio.start_server(serve, sock=listener)
    except BaseException:
        listener.close()
        raise

    def close() -> None:
        server.close()
        if path:
            Path(path).unlink(missing_ok=True)  # since Python 3.13 the server does it

    return close


def _bind(address: Address) -> socket.socket:
    family = socket.AF_UNIX if address.scheme == "unix" else socket.AF_VSOCK
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if address.scheme == "vsock":
            listener.bind((socket.VMADDR_CID_ANY, address.port))
        else:
            listener.bind("\0" + address.target[1:] if address.target[0] == "@" else address.target)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
