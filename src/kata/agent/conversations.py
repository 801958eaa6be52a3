"""Where one host's conversation ends and the next one's begins, in the bytes of a virtio-serial port.

A host that leaves and comes back within a moment is not noticed by the guest: the driver tells only whether a host is
there now. A copy of a saved machine may even find another host there without any change. But the streams of a ttrpc
conversation have increasing numbers, so a request on stream 1 always begins a new one. No I/O here.
"""

from __future__ import annotations

from typing import NamedTuple

from kata.ttrpc.frames import HEADER, REQUEST


class Piece(NamedTuple):
    """Bytes of one conversation; `begins` if they are its first."""

    data: bytes
    begins: bool


class Splitter:
    """Follows the frames in a stream of bytes."""

    def __init__(self) -> None:
        self._partial = b""
        self._payload = 0

    def feed(self, data: bytes) -> list[Piece]:
        """Split what has arrived; the bytes of an incomplete header are kept for the next time."""
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
