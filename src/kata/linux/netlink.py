"""Netlink sockets: messages with nested attributes, requests with an answer, dumps.

A library for this exists (pyroute2). It is not used because importing it takes 150 ms and 13.6 MB, in each shim; in a
guest under emulation it would be seconds. Tests hold what is here against iproute2.

References: netlink(7), rtnetlink(7), include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

REQUEST, MULTI, ACK = 0x1, 0x2, 0x4
ROOT, MATCH = 0x100, 0x200
DUMP = ROOT | MATCH
REPLACE, EXCL, CREATE = 0x100, 0x200, 0x400

_ERROR, _DONE = 2, 3
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
#: Seconds that the kernel has for an answer: it answers from within the call, so this is for its bugs.
_TIMEOUT_S = 5.0
_RECEIVE = 1 << 18
#: Of one dump: a namespace with more is not a pod's.
_MAX_MESSAGES = 100_000


class Message(NamedTuple):
    """One message without its header.

    Attributes:
        type: what it is, a number of the family's.
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
    """The attributes in `data` by kind, the last of each; what is cut off is left out."""
    found: dict[int, bytes] = {}
    position = 0
    while position + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if length < _ATTRIBUTE.size or position + length > len(data):
            break
        found[kind & _TYPE_MASK] = data[position + _ATTRIBUTE.size : position + length]
        position += (length + 3) & ~3
    return found


def unpack(data: bytes) -> Iterator[tuple[Message, int]]:
    """The messages in what one read gave, each with its sequence number."""
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
        groups: bit mask of the multicast groups whose messages `events` gives.
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
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def request(self, what: str, kind: int, body: bytes, flags: int = 0) -> None:
        """Have something done. Raises OSError with what the kernel says about it, `what` as its subject."""
        sequence = self._send(kind, body, REQUEST | ACK | flags)
        for message in self._answers(sequence):
            if message.type == _ERROR:
                _check(message, what)
                return

    def dump(self, what: str, kind: int, body: bytes) -> list[Message]:
        """Ask for everything of a kind. Raises OSError."""
        sequence = self._send(kind, body, REQUEST | DUMP)
        found: list[Message] = []
        for message in self._answers(sequence):
            if message.type == _ERROR:
                _check(message, what)
            if message.type in (_DONE, _ERROR):
                return found
            found.append(message)
            if len(found) > _MAX_MESSAGES:
                raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), what)
        return found

    def events(self) -> list[Message]:
        """The messages of the socket's groups that one read gives; waits for them."""
        return [message for message, _ in unpack(self._socket.recv(_RECEIVE))]

    def drain(self) -> None:
        """Read away the messages of the socket's groups that are there: something has changed, whatever it was."""
        self._socket.setblocking(False)
        while True:
            try:
                self._socket.recv(_RECEIVE)
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
            for message, answers in unpack(self._socket.recv(_RECEIVE)):
                if answers == sequence:
                    yield message


def _check(message: Message, what: str) -> None:
    number = -struct.unpack_from("=i", message.body)[0]
    if number:
        raise OSError(number, os.strerror(number), what)
