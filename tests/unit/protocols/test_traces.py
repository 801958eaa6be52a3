"""W3C's traceparent, and the frames of spans."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.protocols.traces import HEADER, TraceParent, frame, parse

_TRACE, _SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_the_example_of_the_specification() -> None:
    found = parse(f"00-{_TRACE}-{_SPAN}-01")
    assert found == TraceParent(bytes.fromhex(_TRACE), bytes.fromhex(_SPAN), sampled=True)
    assert str(found) == f"00-{_TRACE}-{_SPAN}-01"


def test_flags_other_than_sampled_are_ignored_and_a_later_version_may_have_more() -> None:
    assert parse(f"00-{_TRACE}-{_SPAN}-fe") == TraceParent(bytes.fromhex(_TRACE), bytes.fromhex(_SPAN), sampled=False)
    later = parse(f"cc-{_TRACE}-{_SPAN}-03-more")
    assert later is not None
    assert later.sampled


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        f"00-{_TRACE}-{_SPAN}",
        f"00-{_TRACE}-{_SPAN}-01-more",
        f"ff-{_TRACE}-{_SPAN}-01",
        f"00-{'0' * 32}-{_SPAN}-01",
        f"00-{_TRACE}-{'0' * 16}-01",
        f"00-{_TRACE.upper()}-{_SPAN}-01",
        f"00-{_TRACE[:-1]}-{_SPAN}-01",
        f"00-{_TRACE[:-1]}g-{_SPAN}-01",
        f" 00-{_TRACE}-{_SPAN}-01",
        f"00-{_TRACE[:-2]}²³-{_SPAN}-01",
    ],
)
def test_what_is_none(text: str) -> None:
    assert parse(text) is None


@given(st.text())
def test_nothing_raises(text: str) -> None:
    parse(text)
    parse(f"00-{text}-{text}-01")


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), st.booleans())
def test_there_and_back(trace_id: bytes, span_id: bytes, sampled: bool) -> None:
    parent = TraceParent(trace_id, span_id, sampled)
    assert parse(str(parent)) == (parent if any(trace_id) and any(span_id) else None)


def test_a_frame_is_katas() -> None:
    assert frame(b"abc") == b"\0\0\0\0\0\0\0\x03abc"
    assert HEADER.size == 8
