"""Where one connection of the host ends and the next one begins, in the bytes of a virtio-serial port. No I/O.

A host that reconnects within a moment is not noticed by the guest: the driver knows only whether a host is connected
now. A restored guest may even have another host without any change. But stream ids increase within a ttrpc connection
(containerd/ttrpc, PROTOCOL.md), so a request on stream 1 always begins a new one.
"""

from __future__ import annotations

from typing import NamedTuple

from kata.ttrpc.frames import HEADER, REQUEST


class Piece(NamedTuple):
    """Bytes of one connection; `begins` if they are its first."""

    data: bytes
    begins: bool


class Splitter:
    """Follows the frames in the bytes of a port."""

    def __init__(self) -> None:
        self._partial = b""
        self._payload = 0

    def feed(self, data: bytes) -> list[Piece]:
        """Split bytes that have arrived; those of an incomplete header are kept for the next call."""
        data = self._partial + data
        pieces: list[Piece] = []
        start, begins = 0, False
        position = min(self._payload, len(data))
        self._payload -= position
        while not self._payload and len(data) - position >= HEADER.size:
            length, stream, kind, _ = HEADER.unpack_from(data, position)
            if stream == 1 and kind == REQUEST:
                if position > start:
                    pieces.append(Piece(data[start:position], begins))
                start, begins = position, True
            end = position + HEADER.size + length
            position = min(end, len(data))
            self._payload = end - position
        if position > start:
            pieces.append(Piece(data[start:position], begins))
        self._partial = data[position:]
        return pieces
