from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kata.agent.connections import Splitter
from kata.ttrpc.frames import DATA, REQUEST, encode


def frame(stream: int, payload: bytes = b"", kind: int = REQUEST) -> bytes:
    return encode(stream, kind, 0, (payload,))


def conversations(*chunks: bytes) -> list[bytes]:
    """What each conversation got, in order."""
    splitter = Splitter()
    found: list[bytes] = []
    for chunk in chunks:
        for data, begins in splitter.feed(chunk):
            if begins or not found:
                found.append(b"")
            found[-1] += data
    return found


def test_stream_one_begins_a_conversation() -> None:
    first = frame(1, b"abc") + frame(3, b"") + frame(5, b"x" * 1000)
    second = frame(1) + frame(3, b"d")
    assert conversations(first + second) == [first, second]


def test_a_payload_begins_nothing() -> None:
    whole = frame(1) + frame(3, frame(1, b"not a request"))
    assert conversations(whole) == [whole]


def test_a_response_numbered_one_begins_nothing() -> None:
    whole = frame(1) + frame(1, b"data", kind=DATA)
    assert conversations(whole) == [whole]


@given(
    st.lists(st.lists(st.binary(max_size=40), max_size=4), min_size=1, max_size=4),
    st.lists(st.integers(1, 50), min_size=1),
)
def test_however_the_bytes_come(payloads: list[list[bytes]], sizes: list[int]) -> None:
    wanted = [
        b"".join([frame(1), *(frame(3 + 2 * number, payload) for number, payload in enumerate(group))])
        for group in payloads
    ]
    stream = b"".join(wanted)
    chunks, position, turn = [], 0, 0
    while position < len(stream):
        size = sizes[turn % len(sizes)]
        chunks.append(stream[position : position + size])
        position, turn = position + size, turn + 1
    assert conversations(*chunks) == wanted


@given(st.binary())
def test_garbage_passes_through(data: bytes) -> None:
    passed = b"".join(piece.data for piece in Splitter().feed(data))
    assert data.startswith(passed)
    assert len(data) - len(passed) < 10
