"""Netlink sockets: messages with nested attributes, requests with an answer, dumps.

There is a library for this (pyroute2). It is not used because importing it takes 150 ms and 13.6 MB, in each shim; in
an emulated guest it would take seconds. Tests compare the results with iproute2.

Sources: netlink(7), rtnetlink(7), include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

REQUEST, MULTI, ACK = 0x1, 0x2, 0x4
ROOT, MATCH = 0x100, 0x200
DUMP = ROOT | MATCH
REPLACE, EXCL, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800

#: Multicast group of changes of interfaces.
GROUP_LINK = 0x1
#: Of changes of interfaces, and of addresses, routes and rules of IPv4 and IPv6.
GROUPS_ALL = GROUP_LINK | 0x10 | 0x100 | 0x40 | 0x400 | 0x80 | 0x40000

_ERROR, _DONE = 2, 3
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=i")
#: The kernel's MAX_ERRNO (include/linux/err.h).
_MAX_ERRNO = 4095
#: The kernel answers from within the call, so this is for its bugs.
_TIMEOUT_S = 5.0
_RECEIVE_SIZE = 1 << 18
#: In one dump: a namespace with more is not a pod's.
_MAX_MESSAGES = 100_000


class Message(NamedTuple):
    """One message without its header.

    Attributes:
        type: a number of the family, such as RTM_NEWLINK.
        body: everything after the header.
    """

    type: int
    body: bytes


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)


def text(kind: int, value: str) -> bytes:
    """An attribute that is a zero-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    """An attribute that is an unsigned number of 32 bits."""
    return attribute(kind, struct.pack("=I", value))


def nest(kind: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in `data` by type, the last of each; a truncated one is left out."""
    found: dict[int, bytes] = {}
    position = 0
    while position + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if length < _ATTRIBUTE.size or position + length > len(data):
            break
        found[kind & _TYPE_MASK] = data[position + _ATTRIBUTE.size : position + length]
        position += (length + 3) & ~3
    return found


def to_number(data: bytes) -> int:
    """The value of an attribute that is an unsigned number of 32 bits; 0 without one."""
    return int.from_bytes(data[:4], "little") if len(data) >= 4 else 0


def to_ip(family: int, data: bytes) -> str:
    """The value of an attribute that is an address of a family (socket.AF_INET, AF_INET6); "" without one."""
    try:
        return socket.inet_ntop(family, data)
    except (ValueError, OSError):
        return ""


def unpack(data: bytes) -> Iterator[tuple[Message, int]]:
    """The messages of one read, each with its sequence number."""
    position = 0
    while position + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, position)
        if length < _HEADER.size or position + length > len(data):
            break
        yield Message(kind, data[position + _HEADER.size : position + length]), sequence
        position += (length + 3) & ~3


class Netlink:
    """A routing socket (NETLINK_ROUTE) of the network namespace that it is made in, wherever it is used later.

    Args:
        groups: bit mask of the multicast groups whose messages tell of a change: see `pending` and `drain`.

    Raises:
        OSError: the socket cannot be made.
    """

    def __init__(self, groups: int = 0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.bind((0, groups))
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The socket's descriptor, for an event loop."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def request(self, what: str, kind: int, body: bytes, flags: int = 0) -> None:
        """Send a request and wait for its acknowledgement.

        Args:
            what: names the request in the error.
            kind: type of the message.
            body: everything after the header.
            flags: NLM_F_*, such as CREATE.

        Raises:
            OSError: the kernel refuses; `what` is its subject.
        """
        sequence = self._send(kind, body, REQUEST | ACK | flags)
        for message in self._answers(sequence):
            if message.type == _ERROR:
                _check(message, what)
                return

    def dump(self, what: str, kind: int, body: bytes) -> list[Message]:
        """Ask for all objects of a type.

        Args:
            what: names the request in the error.
            kind: type of the message.
            body: everything after the header.

        Raises:
            OSError: the kernel refuses, there are too many, or one is too short for the header that request and answer
                have; `what` is its subject.
        """  # noqa: DOC501 - `_malformed` makes an OSError
        sequence = self._send(kind, body, REQUEST | DUMP)
        found: list[Message] = []
        for message in self._answers(sequence):
            if message.type == _ERROR:
                _check(message, what)
            if message.type in (_DONE, _ERROR):
                return found
            if len(message.body) < len(body):
                raise _malformed(what)
            found.append(message)
            if len(found) > _MAX_MESSAGES:
                raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), what)
        return found

    def pending(self) -> bool:
        """Whether there are messages of the socket's groups, or any other."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(0))

    def drain(self) -> None:
        """Drop pending messages of the socket's groups, for a caller that only needs to know of a change. Never waits.

        Raises:
            OSError: the socket fails. ENOBUFS is not among its errors: lost messages are dropped ones, too.
        """
        self._socket.setblocking(False)
        while True:
            try:
                self._socket.recv(_RECEIVE_SIZE)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more than the kernel could keep
                    raise

    def _send(self, kind: int, body: bytes, flags: int) -> int:
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
        return self._sequence

    def _answers(self, sequence: int) -> Iterator[Message]:
        while True:
            for message, answers in unpack(self._socket.recv(_RECEIVE_SIZE)):
                if answers == sequence:
                    yield message


def _check(message: Message, what: str) -> None:
    """Raise the error that a message tells, if it tells one.

    Raises:
        OSError: it does.
    """  # noqa: DOC501 - `_malformed` makes an OSError
    if len(message.body) < _NUMBER.size:
        raise _malformed(what)
    number = -_NUMBER.unpack_from(message.body)[0]
    if not 0 <= number <= _MAX_ERRNO:
        raise _malformed(what)
    if number:
        raise OSError(number, os.strerror(number), what)


def _malformed(what: str) -> OSError:
    return OSError(errno.EBADMSG, os.strerror(errno.EBADMSG), what)
