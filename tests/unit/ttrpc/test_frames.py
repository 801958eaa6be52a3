"""Frames: bytes on the wire as the specification has them, in whatever pieces they come."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.ttrpc import frames
from kata.ttrpc.errors import MessageTooLarge
from kata.ttrpc.frames import FrameDecoder


def decode(decoder: FrameDecoder, data: bytes) -> list[tuple[int, int, int, bytes]]:
    return [(f.stream_id, f.type, f.flags, bytes(f.payload)) for f in decoder.feed(data)]


def test_encode_gives_the_bytes_of_the_specification() -> None:
    assert frames.encode(5, frames.DATA, frames.REMOTE_CLOSED | frames.NO_DATA, ()).hex() == "00000000000000050305"
    assert frames.encode(0x01020305, frames.REQUEST, 0, (b"ab", b"c")).hex() == "00000003010203050100616263"


def test_decode_reads_the_bytes_of_the_specification() -> None:
    data = bytes.fromhex("00000002 00000007 0200 6869 00000000 00000009 0304")
    assert decode(FrameDecoder(), data) == [(7, 2, 0, b"hi"), (9, 3, 4, b"")]


FRAMES = st.lists(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(0, 255), st.binary(max_size=40)), max_size=8
)


@given(FRAMES, st.data())
def test_pieces_do_not_matter(expected: list[tuple[int, int, int, bytes]], data: st.DataObject) -> None:
    wire = b"".join(frames.encode(s, t, f, (p,)) for s, t, f, p in expected)
    decoder = FrameDecoder()
    got = []
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        got += decode(decoder, wire[:size])
        wire = wire[size:]
    assert got == expected
    assert not decoder.mid_frame


def test_byte_by_byte_a_frame_comes_with_its_last_byte() -> None:
    decoder = FrameDecoder()
    wire = frames.encode(1, frames.REQUEST, 0, (b"payload",))
    for position in range(len(wire) - 1):
        assert decoder.feed(wire[position : position + 1]) == []
        assert decoder.mid_frame
    assert decode(decoder, wire[-1:]) == [(1, 1, 0, b"payload")]
    assert not decoder.mid_frame


def test_largest_message_passes_and_one_byte_more_does_not() -> None:
    full = bytes(frames.MAX_MESSAGE)
    (frame,) = FrameDecoder().feed(frames.encode(1, frames.DATA, 0, (full,)))
    assert (len(frame.payload), frame.oversized) == (frames.MAX_MESSAGE, False)
    with pytest.raises(MessageTooLarge) as caught:
        frames.encode(1, frames.DATA, 0, (full, b"x"))
    assert (caught.value.size, caught.value.limit) == (frames.MAX_MESSAGE + 1, frames.MAX_MESSAGE)


@pytest.mark.parametrize("step", [1, 3, 10, 11, 1000])
def test_oversized_frame_is_told_at_its_header_and_skipped(step: int) -> None:
    wire = frames.encode(1, 1, 0, (b"x" * 21,)) + frames.encode(3, 1, 0, (b"y" * 20,)) + frames.encode(5, 1, 0, (b"z",))
    decoder = FrameDecoder(20)
    seen = []
    first_at = None
    for start in range(0, len(wire), step):
        for frame in decoder.feed(wire[start : start + step]):
            first_at = start + step if first_at is None else first_at
            seen.append((frame.stream_id, frame.length, frame.oversized, bytes(frame.payload)))
    assert seen == [(1, 21, True, b""), (3, 20, False, b"y" * 20), (5, 1, False, b"z")]
    assert first_at is not None
    assert first_at < frames.HEADER.size + step
    assert not decoder.mid_frame


def test_oversized_frame_costs_no_memory() -> None:
    decoder = FrameDecoder()
    piece = bytes(1 << 20)
    decoder.feed(frames.HEADER.pack(0xFFFF_FFFF, 1, 1, 0))
    tracemalloc.start()
    for _ in range(64):
        assert decoder.feed(piece) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert decoder.mid_frame
    assert peak < 1 << 20


def test_a_promise_of_data_costs_no_memory() -> None:
    tracemalloc.start()
    decoders = [FrameDecoder() for _ in range(20)]
    for decoder in decoders:
        decoder.feed(frames.HEADER.pack(frames.MAX_MESSAGE, 1, 1, 0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@given(st.lists(st.binary(max_size=60)))
def test_any_bytes_are_frames(chunks: list[bytes]) -> None:
    decoder = FrameDecoder(32)
    for chunk in chunks:
        for frame in decoder.feed(chunk):
            assert frame.oversized == (frame.length > 32)
            assert len(frame.payload) == (0 if frame.oversized else frame.length)
