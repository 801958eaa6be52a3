"""Collectors of OTLP, over gRPC and over HTTP, and the trees of what they have got."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


@dataclass
class Collector:
    """What was exported; `fail` is the status of gRPC, or of HTTP, that each export is answered with."""

    port: int = 0
    payloads: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    fail: int = 0
    rejected: int = 0

    @property
    def spans(self) -> list[dict[str, Any]]:
        return [span for payload in self.payloads for span in spans_of(payload)]

    @property
    def names(self) -> list[str]:
        return [span["name"] for span in self.spans]

    def answer(self) -> bytes:
        response = ExportTraceServiceResponse()
        response.partial_success.rejected_spans = self.rejected
        return response.SerializeToString()


def spans_of(payload: bytes) -> list[dict[str, Any]]:
    """The spans of a message, as dictionaries."""
    return [
        {
            "trace": span.trace_id.hex(),
            "id": span.span_id.hex(),
            "parent": span.parent_span_id.hex(),
            "name": span.name,
            "kind": span.kind,
            "start": span.start_time_unix_nano,
            "end": span.end_time_unix_nano,
            "failed": span.status.code == 2,
            "message": span.status.message,
            "attributes": _attributes(span.attributes),
            "resource": _attributes(resource.resource.attributes),
        }
        for resource in ExportTraceServiceRequest.FromString(payload).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _attributes(attributes: Any) -> dict[str, Any]:
    kinds = ((item, item.value.WhichOneof("value")) for item in attributes)
    return {item.key: getattr(item.value, kind) if kind else None for item, kind in kinds}


@contextmanager
def grpc_collector(port: int = 0) -> Iterator[Collector]:
    collector = Collector()

    def export(payload: bytes, context: grpc.ServicerContext) -> bytes:
        if collector.fail:
            context.abort(
                {4: grpc.StatusCode.DEADLINE_EXCEEDED, 3: grpc.StatusCode.INVALID_ARGUMENT}[collector.fail], "no"
            )
        collector.headers.append({key: str(value) for key, value in context.invocation_metadata()})
        collector.payloads.append(payload)
        return collector.answer()

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(export)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Export": handler}),))
        collector.port = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        try:
            yield collector
        finally:
            server.stop(None).wait(10)


@contextmanager
def http_collector(port: int = 0) -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = self.rfile.read(int(self.headers["content-length"]))
            wrong = self.path != "/v1/traces" or self.headers["content-type"] != "application/x-protobuf"
            status = collector.fail or (404 if wrong else 200)
            if status == 200:
                collector.headers.append({key.lower(): value for key, value in self.headers.items()})
                collector.payloads.append(payload)
            answer = collector.answer() if status == 200 else b"no"
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        collector.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join(10)


def tree(spans: list[dict[str, Any]]) -> list[str]:
    """The trees of spans, a line for each: indented below its parent, in the order of their beginnings."""
    children: dict[str, list[dict[str, Any]]] = {}
    known = {span["id"] for span in spans}
    for span in sorted(spans, key=lambda span: span["start"]):
        children.setdefault(span["parent"] if span["parent"] in known else "", []).append(span)
    lines: list[str] = []

    def add(span: dict[str, Any], depth: int, began: int) -> None:
        service = span["resource"].get("service.name", "")
        error = f"  ERROR {span['message']}" if span["failed"] else ""
        at, took = (span["start"] - began) / 1e6, (span["end"] - span["start"]) / 1e6
        lines.append(f"{at:9.1f} {took:9.1f}  {'  ' * depth}{span['name']}  ({service}){error}")
        for child in children.get(span["id"], []):
            add(child, depth + 1, began)

    for root in children.get("", []):
        add(root, 0, root["start"])
    return lines
