"""Where an agent can be reached, and connecting to it.

unix:///PATH, unix://@NAME   a Unix socket, or an abstract one; with hybrid vsock, that of the VMM (Firecracker,
                             Cloud Hypervisor), which connects to a vsock port of the guest
vsock://CID:PORT             a port of a guest; -1, or nothing, is any context id, as in Kata
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from kata.errors import DeadlineExceeded, InvalidArgument, Unavailable
from kata.ttrpc import Client
from kata.ttrpc.address import unix_address

_CONNECT_TIMEOUT_S = 10.0
#: Bytes of a VMM's answer to CONNECT: "OK" and a number.
_MAX_ANSWER = 64


@dataclass(frozen=True)
class Address:
    """A parsed address.

    Attributes:
        text: as the user wrote it.
        path: of a Unix socket, "@…" for an abstract one; "" for vsock.
        cid, port: of vsock; with a path, `port` is that of hybrid vsock, 0 without.
    """

    text: str
    path: str = ""
    cid: int = 0
    port: int = 0


def parse(text: str, hybrid_port: int | None = None) -> Address:
    """Parse an address.

    Args:
        text: one of the forms above.
        hybrid_port: the guest's port, if the socket is that of hybrid vsock.

    Raises:
        InvalidArgument: it has none of these forms, or a port or context id is out of range.
    """
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if separator and scheme == "unix" and rest[:1] in ("/", "@") and len(rest) > 1:
        if hybrid_port is not None and not 0 < hybrid_port < socket.VMADDR_PORT_ANY:
            raise InvalidArgument(f"hybrid vsock port {hybrid_port} is out of range")
        return Address(text, rest, port=hybrid_port or 0)
    if separator and scheme == "vsock":
        if hybrid_port is not None:
            raise InvalidArgument(f"hybrid vsock needs the VMM's Unix socket, not {text}")
        cid, colon, port = rest.partition(":")
        numbers = _number(str(socket.VMADDR_CID_ANY) if cid in ("", "-1") else cid), _number(port)
        if colon and None not in numbers and numbers[1] != 0xFFFFFFFF:
            return Address(text, cid=numbers[0] or 0, port=numbers[1] or 0)
    raise InvalidArgument(f"invalid server address {text!r}", hint="use unix:///PATH, unix://@NAME or vsock://CID:PORT")


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 11 and int(text) < 1 << 32 else None


async def connect(address: Address) -> Client:
    """Connect to an agent.

    Raises:
        Unavailable: nobody listens there, or the VMM refuses.
        DeadlineExceeded: no connection within 10 s.
    """
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            return await Client.from_socket(await _socket(address))
    except TimeoutError:
        raise DeadlineExceeded(f"{address.text}: no connection within {_CONNECT_TIMEOUT_S:.0f} s") from None
    except OSError as error:
        raise Unavailable(
            f"cannot connect to {address.text}: {(error.strerror or str(error)).lower()}", hint=_hint(address)
        ) from error


def _hint(address: Address) -> str:
    if address.path:
        return "an agent has to listen there: see --server-addr of kata-agent, or let --vm boot a guest"
    return "the guest has to have a vsock device, and its agent has to listen on it; --vm boots a guest without either"


async def _socket(address: Address) -> socket.socket:
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_UNIX if address.path else socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if not address.path:
            await loop.sock_connect(sock, (address.cid, address.port))
            return sock
        await loop.sock_connect(sock, unix_address(address.path))
        if address.port:
            await _hybrid(sock, address)
        return sock
    except BaseException:
        sock.close()
        raise


async def _hybrid(sock: socket.socket, address: Address) -> None:
    """Ask the VMM for a port of its guest.

    Reference: Firecracker's docs/vsock.md, "Host-initiated connections".

    Raises:
        Unavailable: it does not connect.
    """
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, f"CONNECT {address.port}\n".encode())
    answer = b""
    # Byte by byte: what follows the line is the agent's.
    while not answer.endswith(b"\n") and len(answer) < _MAX_ANSWER and (byte := await loop.sock_recv(sock, 1)):
        answer += byte
    if not answer.startswith(b"OK ") or not answer.endswith(b"\n"):
        said = f"it answers {answer[:_MAX_ANSWER]!r}" if answer else "it has closed the connection"
        raise Unavailable(
            f"{address.text}: no hybrid vsock connection to port {address.port}: {said}",
            hint="an agent has to listen on that port of the guest (--hybrid-vsock-port)",
        )
