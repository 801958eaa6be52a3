"""The guest's part of a trace: its calls carry the trace's ids, and its spans are checked and put into the host's time.

The guest is hostile, and the one who reads the traces trusts them: of its spans only those count that answer a call of
this sandbox, once for each call, under that call's ids, within its time, and of bounded size. Whose they are says the
host.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.trace import SpanKind

from kata import ttrpc
from kata.errors import KataError
from kata.protocols import traces
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.tracing.tracer import Tracer, end_call, parent_of
from kata.ttrpc.observer import Done

log = logging.getLogger(__name__)

GUEST_SERVICE = "kata-agent"
_AGENT_SERVICE = "grpc.AgentService"
#: Calls that wait for something, carry a stream or go on in the background: they say nothing about where time goes.
_NOT_TRACED = frozenset({
    "CloseStdin", "GetOOMEvent", "ReadStderr", "ReadStdout", "SetGuestDateTime", "StartTracing", "StopTracing",
    "WaitProcess", "WriteStdin",
})  # fmt: skip
#: Calls of which spans may still come.
_MAX_CALLS = 256
#: Of one call.
_MAX_SPANS = 128
_MAX_ATTRIBUTES = 32
_MAX_NAME, _MAX_TEXT = 256, 4096
#: Messages without anything acceptable, before a guest is no longer listened to.
_MAX_REFUSED = 64
#: Seconds for the agent to switch tracing on, and to send its last spans.
_START_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 0.5


@dataclass
class _Call:
    """A call to the guest; `end_ns` is None while it runs."""

    trace_id: bytes
    begin_ns: int
    end_ns: int | None = None


def correction(begin_ns: int, end_ns: int, call: tuple[int, int]) -> int:
    """What has to be added to times of the guest so that they are the host's.

    As NTP does, it is assumed that call and answer took equally long on their way. Nothing is added if the span lies
    within the call already.

    Args:
        begin_ns: of the guest's span, by its clock.
        end_ns: the same of its end.
        call: begin and end of the host's span around it, by the host's clock.
    """
    if call[0] <= begin_ns and end_ns <= call[1]:
        return 0
    return (call[0] + call[1] - begin_ns - end_ns) // 2


class GuestSpans:
    """The calls to one guest, and its spans of them.

    Args:
        attributes: of all spans.
    """

    def __init__(self, attributes: Mapping[str, str]) -> None:
        self._attributes = {"service.name": GUEST_SERVICE, **attributes}
        self._calls: OrderedDict[bytes, _Call] = OrderedDict()

    def begin(self, caller: traces.TraceParent, now_ns: int) -> None:
        """A call begins."""
        self._calls[caller.span_id] = _Call(caller.trace_id, now_ns)
        while len(self._calls) > _MAX_CALLS:
            self._calls.popitem(last=False)

    def end(self, span_id: bytes, now_ns: int) -> None:
        """A call has ended."""
        if call := self._calls.get(span_id):
            call.end_ns = now_ns

    def accept(self, payload: bytes, now_ns: int) -> bytes | None:
        """The guest's spans of a call as the host sends them on; None if there is nothing acceptable in `payload`."""
        if len(payload) > traces.MAX_PAYLOAD:
            return None
        try:
            request = ExportTraceServiceRequest.FromString(payload)
        except DecodeError:
            return None
        spans = [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]
        whole = next((span for span in spans if span.parent_span_id in self._calls), None)
        if whole is None:
            return None
        call = self._calls.pop(whole.parent_span_id)
        # The answer may not have been processed yet.
        period = call.begin_ns, call.end_ns or now_ns
        shift = correction(whole.start_time_unix_nano, whole.end_time_unix_nano, period)
        accepted = ExportTraceServiceRequest()
        resource = accepted.resource_spans.add()
        for key, value in self._attributes.items():
            resource.resource.attributes.add(key=key).value.string_value = value
        scope = resource.scope_spans.add()
        scope.scope.name = "kata.agent"
        known = {whole.parent_span_id}
        # The agent sends an inner step, which ends first, before the outer one.
        for span in sorted(spans[:_MAX_SPANS], key=lambda span: (span.start_time_unix_nano, -span.end_time_unix_nano)):
            if span.parent_span_id in known and len(span.span_id) == 8 and span.span_id not in known:
                known.add(span.span_id)
                _copy(span, scope.spans.add(trace_id=call.trace_id), shift, period)
        return accepted.SerializeToString() if scope.spans else None


def _copy(span: trace_pb2.Span, copy: trace_pb2.Span, shift: int, period: tuple[int, int]) -> None:
    copy.span_id, copy.parent_span_id = span.span_id, span.parent_span_id
    copy.name = span.name[:_MAX_NAME]
    copy.kind = span.kind
    copy.start_time_unix_nano = _clamped(span.start_time_unix_nano + shift, *period)
    copy.end_time_unix_nano = _clamped(span.end_time_unix_nano + shift, copy.start_time_unix_nano, period[1])
    for attribute in span.attributes[:_MAX_ATTRIBUTES]:
        key, value = attribute.key[:_MAX_NAME], attribute.value
        if value.HasField("string_value"):
            copy.attributes.add(key=key).value.string_value = value.string_value[:_MAX_TEXT]
        elif value.HasField("int_value"):
            copy.attributes.add(key=key).value.int_value = value.int_value
    copy.status.code = span.status.code
    copy.status.message = span.status.message[:_MAX_TEXT]


def _clamped(time_ns: int, least: int, most: int) -> int:
    return max(least, min(time_ns, most))


class GuestTracing:
    """Traces the calls to a sandbox's agent, and has the agent trace them.

    Args:
        tracer: of this process.
        agent: of the guest.
    """

    def __init__(self, tracer: Tracer, agent: AgentClient) -> None:
        self._tracer = tracer
        self._agent = agent
        self._spans = GuestSpans(tracer.attributes)
        self._following: asyncio.Task[None] | None = None
        agent.client.observers.append(self._observe)

    async def start(self) -> None:
        """Have the agent make spans; one that cannot costs a line in the log."""
        try:
            await self._agent.start_tracing(_START_TIMEOUT_S)
        except KataError as error:
            log.warning("tracing: no spans from the guest: %s", error)
            return
        self._following = asyncio.create_task(self._follow(), name="spans of the guest")

    async def end(self) -> None:
        """Take the last spans, of an agent that ends now."""
        if self._following is not None:
            await asyncio.wait({self._following}, timeout=_END_TIMEOUT_S)
            self._following.cancel()
            await asyncio.wait({self._following})

    async def _follow(self) -> None:
        refused = 0
        try:
            async with self._agent.client.stream(traces.SERVICE, traces.FOLLOW, client_streams=False) as stream:
                async for payload in stream:
                    accepted = self._spans.accept(payload, time.time_ns())
                    if accepted is not None:
                        self._tracer.sender.send(accepted)
                        continue
                    refused += 1
                    if refused >= _MAX_REFUSED:
                        log.warning("tracing: the guest sends what are no spans of its calls; it is not listened to")
                        return
        except ttrpc.TtrpcError as error:
            log.debug("tracing: no more spans from the guest: %s", error)

    def _observe(self, service: str, method: str, payload: bytes, metadata: dict[str, str]) -> Done | None:
        if service != _AGENT_SERVICE or method in _NOT_TRACED or not trace.get_current_span().is_recording():
            return None
        span = self._tracer.begin_call(service, method, SpanKind.CLIENT)
        caller = parent_of(span)
        metadata[traces.TRACEPARENT] = str(caller)
        self._spans.begin(caller, time.time_ns())

        def done(code: int, text: str) -> None:
            self._spans.end(caller.span_id, time.time_ns())
            end_call(span, code, text)

        return done
