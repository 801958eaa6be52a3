"""What becomes of the spans that a guest sends: checked against its calls, and put into the host's time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from kata.agent import otlp
from kata.agent.tracing import Span
from kata.protocols.traces import MAX_PAYLOAD, TraceParent
from kata.runtime.tracing.guest import _MAX_CALLS, _MAX_SPANS, GuestSpans, correction
from tests.support.otlp import spans_of

CALL = TraceParent(b"T" * 16, b"P" * 8)
BEGIN, END = 1_000_000, 1_001_000


@pytest.fixture
def spans() -> GuestSpans:
    """Those of a guest that has answered one call."""
    spans = GuestSpans({"kata.sandbox.id": "box"})
    spans.begin(CALL, BEGIN)
    spans.end(CALL.span_id, END)
    return spans


def message(*spans: Span, trace_id: bytes = CALL.trace_id) -> bytes:
    return otlp.encode(trace_id, spans)


def span(
    begin: int,
    end: int,
    *,
    name: str = "call",
    span_id: bytes = b"A" * 8,
    parent: bytes = CALL.span_id,
    error: str = "",
) -> Span:
    return Span(name, span_id, parent, begin, end, 5 if error else 0, error)


def accepted(spans: GuestSpans, payload: bytes, now: int = END) -> list[dict[str, Any]]:
    result = spans.accept(payload, now)
    assert result is not None
    return spans_of(result)


class TestTime:
    @pytest.mark.parametrize("clock", [0, 7, -300_000, 10**18, -1_000_000])
    def test_a_clock_that_is_wrong_by_any_amount(self, spans: GuestSpans, clock: int) -> None:
        """Call and step keep their lengths and their distance, in the middle of the host's call."""
        whole, step = span(1_000_100 + clock, 1_000_900 + clock), span(1_000_200 + clock, 1_000_300 + clock)
        step = step._replace(span_id=b"B" * 8, parent_id=b"A" * 8)
        first, second = accepted(spans, message(whole, step))
        assert (first["start"], first["end"]) == pytest.approx((1_000_100, 1_000_900), abs=100)
        assert first["end"] - first["start"] == 800
        assert second["start"] - first["start"] == 100
        assert second["end"] - second["start"] == 100

    def test_one_that_is_right_enough_is_left_alone(self, spans: GuestSpans) -> None:
        (found,) = accepted(spans, message(span(BEGIN + 1, BEGIN + 2)))
        assert (found["start"], found["end"]) == (BEGIN + 1, BEGIN + 2)

    def test_a_span_that_is_longer_than_its_call_is_cut(self, spans: GuestSpans) -> None:
        (found,) = accepted(spans, message(span(0, 1 << 63)))
        assert (found["start"], found["end"]) == (BEGIN, END)

    def test_an_answer_that_is_not_processed_yet(self) -> None:
        spans = GuestSpans({})
        spans.begin(CALL, BEGIN)
        (found,) = accepted(spans, message(span(5, 15)), now=BEGIN + 30)
        assert (found["start"], found["end"]) == (BEGIN + 10, BEGIN + 20)

    @given(*[st.integers(0, (1 << 64) - 1)] * 4)
    def test_whatever_it_says_lies_within_the_call(self, begin: int, end: int, step: int, step_end: int) -> None:
        spans = GuestSpans({})
        spans.begin(CALL, BEGIN)
        spans.end(CALL.span_id, END)
        inner = span(step, step_end, span_id=b"B" * 8, parent=b"A" * 8)
        for found in accepted(spans, message(span(begin, end), inner)):
            assert BEGIN <= found["start"] <= found["end"] <= END

    @given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(-(10**18), 10**18))
    def test_the_correction_is_off_by_no_more_than_half_of_what_the_way_took(
        self, way: int, work: int, back: int, clock: int
    ) -> None:
        """`clock` is how much the guest's is ahead; the span lies in the call after the correction."""
        call = (0, way + work + back)
        begin, end = way + clock, way + work + clock
        shift = correction(begin, end, call)
        assert 0 <= begin + shift <= end + shift <= call[1] or (way + back) % 2
        if not (call[0] <= begin and end <= call[1]):
            assert abs(shift + clock) <= (way + back) / 2 + 1


class TestWhoseTheyAre:
    def test_the_host_says_it(self, spans: GuestSpans) -> None:
        lying = ExportTraceServiceRequest.FromString(message(span(BEGIN, END)))
        lying.resource_spans[0].resource.attributes.add(key="kata.sandbox.id").value.string_value = "another"
        (found,) = accepted(spans, lying.SerializeToString())
        assert found["resource"] == {"service.name": "kata-agent", "kata.sandbox.id": "box"}

    def test_a_call_is_answered_once(self, spans: GuestSpans) -> None:
        payload = message(span(BEGIN, END))
        assert spans.accept(payload, END) is not None
        assert spans.accept(payload, END) is None

    def test_spans_of_no_call_of_ours(self, spans: GuestSpans) -> None:
        assert spans.accept(message(span(BEGIN, END, parent=b"X" * 8)), END) is None
        assert spans.accept(message(), END) is None

    def test_the_trace_is_that_of_the_call_whatever_it_says(self, spans: GuestSpans) -> None:
        (found,) = accepted(spans, message(span(BEGIN, END), trace_id=b"X" * 16))
        assert found["trace"] == CALL.trace_id.hex()

    def test_what_hangs_on_nothing_is_left_out(self, spans: GuestSpans) -> None:
        stray = span(BEGIN, END, name="stray", span_id=b"B" * 8, parent=b"Y" * 8)
        twice = span(BEGIN, END, name="twice")
        short = span(BEGIN, END, name="short", span_id=b"C", parent=b"A" * 8)
        ours = span(BEGIN, END, name="the call's own", span_id=CALL.span_id, parent=b"A" * 8)
        assert [found["name"] for found in accepted(spans, message(span(BEGIN, END), stray, twice, short, ours))] == [
            "call"
        ]

    def test_calls_that_are_never_answered_are_forgotten(self) -> None:
        spans = GuestSpans({})
        for number in range(_MAX_CALLS * 3):
            spans.begin(CALL._replace(span_id=number.to_bytes(8, "big")), BEGIN)
        assert len(spans._calls) == _MAX_CALLS


class TestSize:
    def test_of_texts_attributes_and_numbers(self, spans: GuestSpans) -> None:
        request = ExportTraceServiceRequest.FromString(message(span(BEGIN, END, name="n" * 5000, error="e" * 4096)))
        whole = request.resource_spans[0].scope_spans[0].spans[0]
        for number in range(500):
            whole.attributes.add(key=f"{number}" + "k" * 1000).value.string_value = "v" * 5000
        whole.trace_state = "state"
        whole.events.add(name="event")
        payload = spans.accept(request.SerializeToString(), END)
        assert payload is None, "more than a message may have"
        del whole.attributes[100:]
        payload = spans.accept(request.SerializeToString(), END)
        assert payload is not None
        assert len(payload) < 160_000
        (found,) = spans_of(payload)
        assert (len(found["name"]), len(found["message"]), len(found["attributes"])) == (256, 4096, 32)
        assert b"event" not in payload
        assert b"state" not in payload

    def test_of_a_call(self, spans: GuestSpans) -> None:
        steps = [span(BEGIN, END, span_id=number.to_bytes(8, "big"), parent=b"A" * 8) for number in range(1, 1000)]
        assert len(accepted(spans, message(span(BEGIN, END), *steps))) == _MAX_SPANS

    def test_of_a_message(self, spans: GuestSpans) -> None:
        assert spans.accept(bytes(MAX_PAYLOAD + 1), END) is None

    @given(st.binary())
    def test_garbage(self, payload: bytes) -> None:
        spans = GuestSpans({})
        spans.begin(CALL, BEGIN)
        assert spans.accept(payload, END) is None


def test_what_went_wrong_is_kept(spans: GuestSpans) -> None:
    (found,) = accepted(spans, message(span(BEGIN, END, error="no such thing")))
    assert (found["failed"], found["message"]) == (True, "no such thing")
