"""Spans as OTLP's `ExportTraceServiceRequest`, encoded by hand: its generated modules are not for a guest's memory.

Source: opentelemetry-proto, trace/v1/trace.proto, common/v1/common.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kata.ttrpc.wire import varint
from kata.version import VERSION

if TYPE_CHECKING:
    from kata.agent.tracing import Span

_INTERNAL, _SERVER = 1, 2
_ERROR = 2
#: Characters of a text.
_MAX_TEXT = 4096


def encode(trace_id: bytes, spans: Sequence[Span]) -> bytes:
    """The message.

    Args:
        trace_id: of all spans.
        spans: of one call, which is the first; the others are its steps.
    """
    encoded = [_span(trace_id, span, _INTERNAL if number else _SERVER) for number, span in enumerate(spans)]
    scope = _field(1, _text(1, "kata.agent") + _text(2, VERSION))
    resource = _field(1, _attribute(1, "service.name", "kata-agent"))
    return _field(1, resource + _field(2, scope + b"".join(_field(2, span) for span in encoded)))


def _span(trace_id: bytes, span: Span, kind: int) -> bytes:
    parts = [
        _field(1, trace_id),
        _field(2, span.span_id),
        _field(4, span.parent_id),
        _text(5, span.name),
        _number(6, kind),
        _fixed(7, span.begin_ns),
        _fixed(8, span.end_ns),
    ]
    if kind == _SERVER:
        service, _, method = span.name.partition("/")
        for key, value in (("rpc.system", "ttrpc"), ("rpc.service", service), ("rpc.method", method)):
            parts.append(_attribute(9, key, value))
        parts.append(_field(9, _text(1, "rpc.grpc.status_code") + _field(2, _number(3, span.code))))
    if span.container:
        parts.append(_attribute(9, "container.id", span.container))
    if span.code:
        parts.append(_field(15, _text(2, span.error) + _number(3, _ERROR)))
    return b"".join(parts)


def _attribute(number: int, key: str, value: str) -> bytes:
    return _field(number, _text(1, key) + _field(2, _text(1, value)))


def _text(number: int, text: str) -> bytes:
    return _field(number, text[:_MAX_TEXT].encode("utf-8", "replace"))


def _field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def _fixed(number: int, value: int) -> bytes:
    return varint(number << 3 | 1) + struct.pack("<Q", value)
