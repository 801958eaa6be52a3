"""Traces across the border of a guest: how a call names its trace, how spans leave, and how they are framed.

A call that is traced has W3C's `traceparent` in its metadata (Trace Context, 3.2): "00-TRACE-SPAN-FLAGS" in hex. What
leaves a guest is an `ExportTraceServiceRequest` of OTLP (opentelemetry-proto, collector/trace/v1) with the spans of one
call: as a message of FOLLOW, this project's own streaming RPC, or as a frame on a connection to Kata's port for traces.
A frame is Kata's, 8 bytes of big-endian length and the payload; Kata's own payload, a serialized Rust structure, can no
longer be decoded by Kata itself.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

SERVICE = "kata.Traces"
#: The spans from now on, until the agent ends. The request is empty.
FOLLOW = "Follow"

#: Kata's port for traces on the host, of vsock and hybrid vsock.
PORT = 10240
#: The header of a frame: the length of what follows.
HEADER = struct.Struct(">Q")
#: Bytes of a payload.
MAX_PAYLOAD = 1 << 20

TRACEPARENT = "traceparent"
_SAMPLED = 1


class TraceParent(NamedTuple):
    """The span that a call belongs to: ids of 16 and 8 bytes, and whether the trace is recorded."""

    trace_id: bytes
    span_id: bytes
    sampled: bool = True

    def __str__(self) -> str:
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-{'01' if self.sampled else '00'}"


def parse(text: str) -> TraceParent | None:
    """The span that a `traceparent` names; None if it names none."""
    fields = text.split("-")
    # A later version may have more fields.
    if len(fields) < 4 or (fields[0] == "00" and len(fields) > 4) or fields[0] == "ff":
        return None
    if list(map(len, fields[:4])) != [2, 32, 16, 2] or not set("".join(fields[:4])) <= set("0123456789abcdef"):
        return None
    trace_id, span_id = bytes.fromhex(fields[1]), bytes.fromhex(fields[2])
    if not any(trace_id) or not any(span_id):
        return None
    return TraceParent(trace_id, span_id, bool(int(fields[3], 16) & _SAMPLED))


def frame(payload: bytes) -> bytes:
    """A payload, framed."""
    return HEADER.pack(len(payload)) + payload
