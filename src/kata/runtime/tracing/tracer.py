"""The spans of this process, made by OpenTelemetry's SDK and sent to the trace forwarder.

The context is OpenTelemetry's own, a context variable: a task begins with its maker's span. What it records later than
that span lasts belongs to no operation, and is left out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from kata.log_fields import CONTAINER
from kata.protocols.traces import TraceParent
from kata.runtime.config.settings import RuntimeConfig
from kata.runtime.tracing import identity
from kata.runtime.tracing.sender import Sender
from kata.version import VERSION

SERVICE = "kata-runtime"
#: Seconds for which spans are collected for one message, and spans in it at most.
_COLLECT_S = 0.05
_MAX_SPANS = 256
#: Seconds for the last spans to be sent.
_CLOSE_TIMEOUT_S = 1.0
#: Characters of an error's text.
_MAX_TEXT = 4096
#: To `use_span`: no events with tracebacks, and the end and the status are set here.
_PLAIN = {"end_on_exit": False, "record_exception": False, "set_status_on_exception": False}


class Tracer:
    """Made inside a running event loop.

    Args:
        config: where spans are sent.
        attributes: of all spans.

    Attributes:
        attributes: as given.
        sender: to the trace forwarder.
    """

    def __init__(self, config: RuntimeConfig, attributes: Mapping[str, str]) -> None:
        self.attributes = dict(attributes)
        self.sender = Sender(str(config.trace_forwarder_socket))
        self._ended = _Ended(self.sender)
        resource = Resource.create({SERVICE_NAME: SERVICE, **attributes})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(self._ended)
        self._tracer = self._provider.get_tracer("kata", VERSION)

    async def close(self) -> None:
        """Send the last spans, for a second at most."""
        self._provider.shutdown()
        await self.sender.close(_CLOSE_TIMEOUT_S)

    def begin(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: Context | None = None,
        attributes: Mapping[str, str | int] | None = None,
        begun: float | None = None,
    ) -> Span:
        """Begin a span; whoever calls this ends it.

        Args:
            name: what is done.
            kind: whose side of a call, if it is one.
            parent: the context with its parent; None: the current one; an empty one makes it the first of a trace.
            attributes: besides those of all spans.
            begun: when it has begun, by `time.monotonic`; None: now.
        """
        start_ns = None if begun is None else _wall_ns(begun)
        return self._tracer.start_span(name, context=parent, kind=kind, attributes=attributes, start_time=start_ns)

    @contextmanager
    def span(self, name: str, container: str = "") -> Iterator[None]:
        """As `kata.runtime.tracing.span`."""
        if not trace.get_current_span().is_recording():
            yield
            return
        with _around(self.begin(name, attributes=_of(container))):
            yield

    def record(self, name: str, begin: float, container: str = "") -> None:
        """As `kata.runtime.tracing.record`."""
        if trace.get_current_span().is_recording():
            self.begin(name, attributes=_of(container), begun=begin).end()

    @contextmanager
    def operation(self, name: str, begun: float | None = None) -> Iterator[None]:
        """A trace of its own: the body and all that is recorded in it."""
        with _around(self.begin(name, parent=Context(), begun=begun)):
            yield

    def begin_call(
        self, service: str, method: str, kind: SpanKind, *, parent: Context | None = None, begun: float | None = None
    ) -> Span:
        """Begin the span of a call, on either side; `end_call` ends it. Named as OpenTelemetry names RPCs."""
        attributes: dict[str, str | int] = {"rpc.system": "ttrpc", "rpc.service": service, "rpc.method": method}
        return self.begin(f"{service}/{method}", kind=kind, parent=parent, attributes=attributes, begun=begun)


@contextmanager
def _around(span: Span) -> Iterator[None]:
    """Have the body be a span's, which ends with it, and in an error if that raises."""
    with trace.use_span(span, **_PLAIN):
        try:
            yield
        except BaseException as error:
            fail(span, str(error) or type(error).__name__)
            raise
        finally:
            span.end()


def end_call(span: Span, code: int, text: str) -> None:
    """End the span of a call, with code and text of its status, in the task that has made or answered it."""
    span.set_attribute("rpc.grpc.status_code", code)
    span.set_attributes(_of(""))
    if code:
        fail(span, text)
    span.end()


def fail(span: Span, text: str) -> None:
    """Note what went wrong."""
    span.set_status(Status(StatusCode.ERROR, text[:_MAX_TEXT]))


def parent_of(span: Span) -> TraceParent:
    """How a call says that it belongs to a span."""
    context = span.get_span_context()
    ids = context.trace_id.to_bytes(16, "big"), context.span_id.to_bytes(8, "big")
    return TraceParent(*ids, context.trace_flags.sampled)


def within(span: Span) -> Context:
    """The context in which a span is the current one."""
    return set_span_in_context(span, Context())


def within_remote(caller: TraceParent) -> Context:
    """The context in which a span of another process is the current one."""
    trace_id, span_id = int.from_bytes(caller.trace_id, "big"), int.from_bytes(caller.span_id, "big")
    flags = TraceFlags(TraceFlags.SAMPLED if caller.sampled else TraceFlags.DEFAULT)
    return within(NonRecordingSpan(SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)))


class _Ended(SpanProcessor):
    """Spans that have ended, on their way to the sender: those that end together are one message."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._spans: list[ReadableSpan] = []
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def on_end(self, span: ReadableSpan) -> None:
        if not span.context or not span.context.trace_flags.sampled:
            return
        self._spans.append(span)
        if len(self._spans) >= _MAX_SPANS:
            self._send()
        elif self._timer is None:
            self._timer = self._loop.call_later(_COLLECT_S, self._send)

    def shutdown(self) -> None:
        self._send()

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        spans, self._spans = self._spans, []
        if spans:
            self._sender.send(encode_spans(spans).SerializeToString())


def _of(container: str) -> dict[str, str | int]:
    named = container or CONTAINER.get()
    return {identity.CONTAINER: named} if named else {}


def _wall_ns(monotonic: float) -> int:
    return time.time_ns() - time.monotonic_ns() + int(monotonic * 1e9)
