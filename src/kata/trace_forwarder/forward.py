"""One run of the forwarder: listen, export or print, until a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from dataclasses import dataclass

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from kata.trace_forwarder import dump
from kata.trace_forwarder.buffer import Batch, Buffer
from kata.trace_forwarder.exporting import Exporting
from kata.trace_forwarder.otlp import Endpoint, Exporter, exporter
from kata.trace_forwarder.receiver import Receiver

log = logging.getLogger(__name__)

#: Seconds for the collector to take what waits when the forwarder ends.
_FLUSH_TIMEOUT_S = 5.0
_SERVICE = "service.name"


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        unix: path of the Unix socket to listen on; "" for none.
        vsock: context id and port to listen on; None for neither.
        trace_name: the service's name of spans that have none.
        endpoint: the collector; None to print spans.
    """

    unix: str
    vsock: tuple[int, int] | None
    trace_name: str
    endpoint: Endpoint | None


async def forward(request: Request) -> int:
    """Forward until SIGINT or SIGTERM; returns the exit code.

    Raises:
        KataError: it cannot listen.
        BrokenPipeError: nobody reads what is printed.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    failed: list[OSError] = []

    def to_output(spans: ExportTraceServiceRequest) -> None:
        try:
            for line in dump.lines(named(spans, request.trace_name)):
                sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        except OSError as error:
            failed.append(error)
            stopped.set()

    def to_buffer(spans: ExportTraceServiceRequest) -> None:
        count = sum(len(scope.spans) for resource in spans.resource_spans for scope in resource.scope_spans)
        if count:
            buffer.put(Batch(named(spans, request.trace_name).SerializeToString(), count))

    buffer = Buffer()
    receiver = Receiver(to_buffer if request.endpoint else to_output)
    way: Exporter | None = None
    sending = exporting = None
    try:
        if request.unix:
            await receiver.listen_unix(request.unix)
            log.info("listening on %s", request.unix)
        if request.vsock:
            await receiver.listen_vsock(*request.vsock)
            log.info("listening on vsock port %d", request.vsock[1])
        if request.endpoint:
            way = exporter(request.endpoint)
            exporting = Exporting(buffer, way, str(request.endpoint))
            sending = asyncio.create_task(exporting.run())
            log.info("exporting to %s over %s", request.endpoint, "gRPC" if request.endpoint.is_grpc else "HTTP")
            sending.add_done_callback(lambda _: stopped.set())  # only a bug ends it
        await stopped.wait()
    finally:
        await receiver.close()
        if way and sending and exporting:
            left = await exporting.flush(_FLUSH_TIMEOUT_S)
            sending.cancel()
            await asyncio.wait({sending})
            await way.close()
            exporting.report_dropped()
            log.info("%d spans were exported, %d were lost", exporting.exported, exporting.lost + left)
    if failed:
        raise failed[0]
    if sending and not sending.cancelled() and (bug := sending.exception()):
        raise bug
    return 0


def named(spans: ExportTraceServiceRequest, name: str) -> ExportTraceServiceRequest:
    """Give a service's name to the spans that have none; returns `spans`."""
    for resource in spans.resource_spans:
        if not any(attribute.key == _SERVICE for attribute in resource.resource.attributes):
            resource.resource.attributes.add(key=_SERVICE).value.string_value = name
    return spans
