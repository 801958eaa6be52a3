"""The command line `kata-trace-forwarder`. Names and options are Kata's."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from enum import Enum
from typing import Annotated

import typer

from kata.cli.program import Invocation, log_to_stderr, occupy_standard_streams, run_command_line, version_option
from kata.cli.render import ExitCode
from kata.errors import InvalidArgument
from kata.protocols.traces import PORT

PROGRAM = "kata-trace-forwarder"
#: Where sandboxes send their spans by default (`trace_forwarder_socket` in the configuration).
_SOCKET = "/run/kata-trace-forwarder"
#: Kata's levels, and those of `logging` that they are.
_LEVELS = {
    "critical": logging.CRITICAL,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
}

app = typer.Typer(
    name=PROGRAM,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Level = Enum("_Level", {level: level for level in _LEVELS}, type=str)  # type: ignore[misc]
_Protocol = Enum("_Protocol", {name: name for name in ("auto", "grpc", "http")}, type=str)  # type: ignore[misc]


class _Invocation(Invocation):
    def exit_code(self, error: Exception) -> int:
        """As any program's, but what it refuses is always its command line's mistake."""
        return ExitCode.USAGE if isinstance(error, InvalidArgument) else super().exit_code(error)


@app.command(
    epilog="OTEL_EXPORTER_OTLP_HEADERS (name=value,…) adds headers to each export, as for OpenTelemetry's own "
    "exporters. SIGINT and SIGTERM end it, after what waits has been exported, or five seconds.",
)
def _forward(
    context: typer.Context,
    socket_path: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help=f"Listen on the Unix socket PATH_{PORT}, where sandboxes of pykata, and VMMs with hybrid vsock, "
            f"connect. The default is {_SOCKET}, unless --vsock-cid is given.",
            show_default=False,
        ),
    ] = None,
    vsock_cid: Annotated[
        str | None,
        typer.Option(metavar="CID", help='Listen on vsock: a context id of this host, or "any".', show_default=False),
    ] = None,
    vsock_port: Annotated[int, typer.Option(metavar="PORT", help="The port of vsock.", min=1, max=0xFFFFFFFE)] = PORT,
    otlp_endpoint: Annotated[
        str,
        typer.Option(metavar="URL", help="The collector: http://HOST:4317 for gRPC, http://HOST:4318 for HTTP."),
    ] = "http://localhost:4317",
    otlp_protocol: Annotated[
        _Protocol, typer.Option(help="auto is HTTP for port 4318, and for a URL with a path.")
    ] = _Protocol.auto,  # type: ignore[attr-defined]
    dump_only: Annotated[
        bool, typer.Option("--dump-only", help="Print each span as a line of JSON, and export none.")
    ] = False,
    trace_name: Annotated[
        str, typer.Option(metavar="NAME", help="The service's name of spans that have none.")
    ] = "kata-agent",
    log_level: Annotated[
        _Level, typer.Option("-l", "--log-level", help="What is logged on standard error.")
    ] = _Level.info,  # type: ignore[attr-defined]
    jaeger_host: Annotated[str | None, typer.Option(hidden=True)] = None,
    jaeger_port: Annotated[str | None, typer.Option(hidden=True)] = None,
    _version: Annotated[bool, version_option(PROGRAM)] = False,
) -> int:
    """Forward traces of sandboxes, and of their guests, to a collector that speaks OTLP, such as Jaeger."""  # noqa: DOC501 - it is the help
    level = _LEVELS[log_level.value]
    context.obj.debug = level == logging.DEBUG
    if jaeger_host is not None or jaeger_port is not None:
        raise InvalidArgument(
            "Jaeger's own protocol is not spoken any more: --jaeger-host and --jaeger-port have no effect",
            hint="Jaeger takes OTLP: --otlp-endpoint http://HOST:4317",
        )
    # Imported here: `--help` and `--version` do without.
    from kata.trace_forwarder.forward import Request, forward
    from kata.trace_forwarder.otlp import parse_endpoint

    endpoint = None if dump_only else parse_endpoint(otlp_endpoint, otlp_protocol.value)
    if socket_path is None and vsock_cid is None:
        socket_path = _SOCKET
    unix = f"{socket_path}_{PORT}" if socket_path else ""
    vsock = None if vsock_cid is None else (_cid(vsock_cid), vsock_port)
    log_to_stderr(PROGRAM, level)
    return asyncio.run(forward(Request(unix, vsock, trace_name, endpoint)))


def _cid(text: str) -> int:
    if text == "any":
        return socket.VMADDR_CID_ANY
    if text.isdecimal() and int(text) < 1 << 32:
        return int(text)
    raise InvalidArgument(f"invalid context id {text!r}", hint='use a number, or "any"')


def invoke(arguments: list[str]) -> int:
    """Run one command line and return its exit code; errors have been printed on stderr."""
    return run_command_line(app, PROGRAM, arguments, _Invocation(), option="-l debug")


def main() -> None:
    """Run the console script `kata-trace-forwarder`."""
    occupy_standard_streams()
    sys.exit(invoke(sys.argv[1:]))
