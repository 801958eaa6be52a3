"""Netlink's messages as bytes: what the kernel does not send is an error of the system's, and no other."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from kata.linux import rtnetlink
from kata.linux.netlink import Message, Netlink, unpack

_ERROR, _NEWLINK = 2, 16


class Scripted(Netlink):
    """Is answered with these bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def _send(self, kind: int, body: bytes, flags: int) -> int:
        return 1

    def _answers(self, sequence: int) -> Iterator[Message]:
        return (message for message, _ in unpack(self._data))


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


@pytest.mark.parametrize(
    ("kind", "body"),
    [(_NEWLINK, b""), (_NEWLINK, bytes(15)), (_ERROR, b"\0"), (_ERROR, b"\0\0\0\x80"), (_ERROR, b"\1\0\0\0")],
)
def test_a_malformed_answer(kind: int, body: bytes) -> None:
    with pytest.raises(OSError, match="list interfaces") as caught:
        rtnetlink.links(Scripted(message(kind, body)))
    assert caught.value.errno == errno.EBADMSG


def test_an_error_is_told() -> None:
    refusal = message(_ERROR, struct.pack("=i", -errno.EPERM))
    with pytest.raises(PermissionError, match="list interfaces"):
        rtnetlink.links(Scripted(refusal))
    with pytest.raises(PermissionError, match="remove interface"):
        Scripted(refusal).request("remove interface", 17, struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 1, 0, 0))
