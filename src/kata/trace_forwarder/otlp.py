"""OTLP to a collector, over gRPC and over HTTP: serialized messages in, success or an error out.

Source: opentelemetry-proto, docs/specification.md ("OTLP/gRPC", "OTLP/HTTP", and what may be tried again).
"""

from __future__ import annotations

import http.client
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote, urlsplit

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from kata.errors import InvalidArgument
from kata.loop.off import off_loop

EXPORT_TIMEOUT_S = 10.0
_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_GRPC_RETRIED = (
    "ABORTED", "CANCELLED", "DATA_LOSS", "DEADLINE_EXCEEDED", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED", "UNAVAILABLE",
)  # fmt: skip
#: A collector that has been away for long is noticed soon when it is back; gRPC would wait for two minutes.
_CHANNEL = (("grpc.max_reconnect_backoff_ms", 10_000),)
_HTTP_RETRIED = (429, 502, 503, 504)
_HTTP_PATH, _HTTP_PORT, _GRPC_PORT = "/v1/traces", 4318, 4317
_MAX_ANSWER = 64 << 10
_MAX_TEXT = 200


class ExportError(Exception):
    """An export failed.

    Attributes:
        again: whether it may be tried again; otherwise the collector does not want these spans.
    """

    def __init__(self, text: str, *, again: bool) -> None:
        super().__init__(text)
        self.again = again


class Exporter(Protocol):
    """One way to a collector."""

    async def export(self, payload: bytes) -> int:
        """Send a serialized `ExportTraceServiceRequest`, within EXPORT_TIMEOUT_S.

        Returns:
            How many of its spans the collector has rejected.

        Raises:
            ExportError: it was not taken.
        """

    async def close(self) -> None:
        """Disconnect."""


@dataclass(frozen=True)
class Endpoint:
    """A parsed endpoint.

    Attributes:
        is_grpc: whether it is gRPC's, else HTTP's.
        is_secure: whether it is reached over TLS.
        path: of HTTP.
    """

    is_grpc: bool
    is_secure: bool
    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        return f"{'http' if not self.is_secure else 'https'}://{self.host}:{self.port}{self.path}"


def parse_endpoint(text: str, protocol: str = "auto") -> Endpoint:
    """Parse `--otlp-endpoint`.

    Args:
        text: http://HOST[:PORT][/PATH], or https.
        protocol: "grpc", "http", or "auto": HTTP if there is a path, or the port is OTLP's for HTTP.

    Raises:
        InvalidArgument: it is none, or gRPC's with a path.
    """
    hint = "use http://HOST:4317 for gRPC, http://HOST:4318 for HTTP"
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise InvalidArgument(f"invalid OTLP endpoint {text!r}", hint=hint) from None
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.username:
        raise InvalidArgument(f"invalid OTLP endpoint {text!r}", hint=hint)
    path = url.path.rstrip("/")
    if path.endswith("/api/traces"):
        raise InvalidArgument(f"{text!r} speaks Jaeger's own protocol, not OTLP", hint=hint)
    is_grpc = protocol == "grpc" or (protocol == "auto" and not path and port != _HTTP_PORT)
    if is_grpc and path:
        raise InvalidArgument(f"OTLP endpoint {text!r} has a path, which gRPC has none of", hint=hint)
    default = _GRPC_PORT if is_grpc else _HTTP_PORT
    return Endpoint(
        is_grpc, url.scheme == "https", url.hostname, port or default, "" if is_grpc else path or _HTTP_PATH
    )


def headers(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What OTEL_EXPORTER_OTLP_HEADERS adds to each export: "name=value,…", as OpenTelemetry's exporters read it."""
    pairs = (part.partition("=") for part in environ.get("OTEL_EXPORTER_OTLP_HEADERS", "").split(",") if "=" in part)
    return {name.strip().lower(): unquote(value.strip()) for name, _, value in pairs}


def exporter(endpoint: Endpoint) -> Exporter:
    """The exporter for an endpoint, inside a running event loop."""
    return GrpcExporter(endpoint) if endpoint.is_grpc else HttpExporter(endpoint)


class GrpcExporter:
    """OTLP/gRPC."""

    def __init__(self, endpoint: Endpoint) -> None:
        # Imported on first use: 10 MB, and half a second.
        import grpc.aio

        target = f"[{endpoint.host}]:{endpoint.port}" if ":" in endpoint.host else f"{endpoint.host}:{endpoint.port}"
        self._grpc = grpc
        self._channel = (
            grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(), _CHANNEL)
            if endpoint.is_secure
            else grpc.aio.insecure_channel(target, _CHANNEL)
        )
        self._metadata = tuple(headers().items())
        self._call: Callable[..., Awaitable[bytes]] = self._channel.unary_unary(_METHOD)

    async def export(self, payload: bytes) -> int:
        """Implement Exporter.

        Raises:
            ExportError: see there.
        """
        try:
            answer = await self._call(payload, timeout=EXPORT_TIMEOUT_S, metadata=self._metadata)
        except self._grpc.aio.AioRpcError as error:
            name = error.code().name
            text = f"{name.lower().replace('_', ' ')}: {(error.details() or '')[:_MAX_TEXT]}"
            raise ExportError(text, again=name in _GRPC_RETRIED) from None
        return _rejected(answer)

    async def close(self) -> None:
        """Implement Exporter."""
        await self._channel.close()


class HttpExporter:
    """OTLP/HTTP, with protobuf: a connection for each export."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._headers = {"content-type": "application/x-protobuf", **headers()}

    async def export(self, payload: bytes) -> int:
        """Implement Exporter."""
        return await off_loop(self._export, payload)

    def _export(self, payload: bytes) -> int:
        kind = http.client.HTTPSConnection if self._endpoint.is_secure else http.client.HTTPConnection
        connection = kind(self._endpoint.host, self._endpoint.port, timeout=EXPORT_TIMEOUT_S)
        try:
            connection.request("POST", self._endpoint.path, payload, self._headers)
            response = connection.getresponse()
            answer = response.read(_MAX_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            raise ExportError(str(error) or type(error).__name__, again=True) from None
        finally:
            connection.close()
        if response.status != http.client.OK:
            text = f"HTTP {response.status} {response.reason}"
            raise ExportError(text, again=response.status in _HTTP_RETRIED)
        return _rejected(answer)

    async def close(self) -> None:
        """Implement Exporter."""


def _rejected(answer: bytes) -> int:
    try:
        return int(ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans)
    except DecodeError:
        return 0
