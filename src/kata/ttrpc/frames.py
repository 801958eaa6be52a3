"""ttrpc frames: a 10-byte header and at most 4 MiB of data. No I/O, no knowledge of streams.

    0       4           8      9       10
    | length | stream id | type | flags | data …

Numbers are big-endian and unsigned (containerd/ttrpc, PROTOCOL.md, "Message Frame").
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from kata.ttrpc.errors import MessageTooLarge

#: Largest length of a frame's data, in bytes; every implementation has the same.
MAX_MESSAGE = 4 << 20

HEADER = struct.Struct(">IIBB")

REQUEST = 1
RESPONSE = 2
DATA = 3

#: The sender sends no more on this stream.
REMOTE_CLOSED = 0x01
#: The sender of the request sends data after it.
REMOTE_OPEN = 0x02
#: The frame carries no message (an empty one is a message, too).
NO_DATA = 0x04


class Frame(NamedTuple):
    """One frame that was received.

    Attributes:
        payload: a view into the received bytes; empty if `oversized`.
        oversized: `length` exceeds the decoder's limit; the data is skipped and never held.
    """

    length: int
    stream_id: int
    type: int
    flags: int
    payload: memoryview
    oversized: bool


_NOTHING = memoryview(b"")


def encode(
    stream_id: int, kind: int, flags: int, parts: Sequence[bytes], *, tail: int = 0, max_message: int = MAX_MESSAGE
) -> bytes:
    """The frame with `parts`, joined, as its data. The join is the only copy of a message on its way out.

    Args:
        stream_id: of the call.
        kind: the message type.
        flags: of the header.
        parts: the data.
        tail: length of data that is not among `parts`: the caller sends it right after the frame.
        max_message: bytes of data at most.

    Raises:
        MessageTooLarge: parts and tail exceed `max_message` bytes.
    """
    length = sum(map(len, parts)) + tail
    if length > max_message:
        raise MessageTooLarge(length, max_message)
    return b"".join((HEADER.pack(length, stream_id, kind, flags), *parts))


class FrameDecoder:
    """Cuts a byte stream into frames, whatever chunks it comes in.

    Holds at most one incomplete frame, so never more than the limit and a header. Any byte sequence is a sequence of
    frames; the layer above checks what they mean.
    """

    def __init__(self, max_message: int = MAX_MESSAGE) -> None:
        self._max_message = max_message
        self._buffer = bytearray()  # the start of a frame
        self._need = HEADER.size  # length of _buffer at which decoding can continue
        self._skip = 0  # bytes of an oversized frame that are still to come

    @property
    def mid_frame(self) -> bool:
        """Whether the bytes so far end inside a frame."""
        return bool(self._buffer or self._skip)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes, in order. An oversized one is reported after its header."""
        whole: bytes | bytearray = data
        start = 0
        if self._skip:
            start = min(self._skip, len(data))
            self._skip -= start
        elif self._buffer:
            self._buffer += data
            if len(self._buffer) < self._need:
                return []
            # Handed over and never resized again, so that views into it stay valid.
            whole, self._buffer = self._buffer, bytearray()

        frames = []
        view = memoryview(whole)
        end = len(view)
        self._need = HEADER.size
        while end - start >= HEADER.size:
            length, stream_id, kind, flags = HEADER.unpack_from(view, start)
            body = start + HEADER.size
            if length > self._max_message:
                frames.append(Frame(length, stream_id, kind, flags, _NOTHING, True))
                start = min(body + length, end)
                self._skip = body + length - start
                continue
            if end - body < length:
                self._need = HEADER.size + length
                break
            start = body + length
            frames.append(Frame(length, stream_id, kind, flags, view[body:start], False))
        if start < end:
            self._buffer += view[start:]
        return frames
