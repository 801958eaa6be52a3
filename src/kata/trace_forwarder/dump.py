"""Spans as lines of JSON: all that is known of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


def lines(request: ExportTraceServiceRequest) -> Iterator[str]:
    """A line for each span; what is not ASCII is escaped, and so are control characters."""
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield json.dumps({**_span(span), "resource": _attributes(resource.resource.attributes)})


def _span(span: Span) -> dict[str, Any]:
    known = {
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_span_id": span.parent_span_id.hex() or None,
        "name": span.name,
        "kind": _name(Span.SpanKind, span.kind, "SPAN_KIND_"),
        "start": _time(span.start_time_unix_nano),
        "end": _time(span.end_time_unix_nano),
        "duration_ms": round((span.end_time_unix_nano - span.start_time_unix_nano) / 1e6, 3),
        "status": _name(Status.StatusCode, span.status.code, "STATUS_CODE_"),
        "message": span.status.message or None,
        "attributes": _attributes(span.attributes),
    }
    more = {
        "trace_state": span.trace_state or None,
        "events": [
            {"time": _time(event.time_unix_nano), "name": event.name, "attributes": _attributes(event.attributes)}
            for event in span.events
        ],
        "links": [
            {
                "trace_id": link.trace_id.hex(),
                "span_id": link.span_id.hex(),
                "attributes": _attributes(link.attributes),
            }
            for link in span.links
        ],
    }
    return {**known, **{key: value for key, value in more.items() if value}}


def _attributes(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: AnyValue, depth: int = 8) -> Any:
    kind = value.WhichOneof("value")
    if kind is None or not depth:
        return None
    if kind == "array_value":
        return [_value(item, depth - 1) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: _value(item.value, depth - 1) for item in value.kvlist_value.values}
    found = getattr(value, kind)
    return found.hex() if isinstance(found, bytes) else found


def _name(enum: Any, number: int, prefix: str) -> str:
    return str(enum.Name(number)).removeprefix(prefix).lower() if number in enum.values() else str(number)


def _time(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 10**9)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"
    except (ValueError, OverflowError, OSError):
        return f"{nanoseconds} ns"  # no clock of ours
