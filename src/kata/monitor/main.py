"""The command line `kata-monitor`: options to a server. Names and options are Kata's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from kata.cli.program import Invocation, log_to_stderr, occupy_standard_streams, run_command_line, version_option
from kata.cli.root import require_root
from kata.linux.malloc import use_one_arena
from kata.runtime.ledger.journal import STATE_ROOT

PROGRAM = "kata-monitor"
_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}
_Level = Enum("_Level", {level: level for level in _LEVELS}, type=str)  # type: ignore[misc]

log = logging.getLogger(__name__)

app = typer.Typer(name=PROGRAM, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="The exit code is 0, 1 after an error, 2 for a mistake in the command line, or 128+n after signal n.",
)
def monitor(
    context: typer.Context,
    listen_address: Annotated[
        str, typer.Option("--listen-address", metavar="ADDRESS", help="Where to serve: HOST:PORT, or :PORT for all.")
    ] = "127.0.0.1:8090",
    _runtime_endpoint: Annotated[
        str,
        typer.Option(
            "--runtime-endpoint",
            metavar="PATH",
            help="Accepted for Kata's sake: sandboxes themselves say which pod they are of.",
        ),
    ] = "/run/containerd/containerd.sock",
    log_level: Annotated[
        _Level, typer.Option("-l", "--log-level", help="What is logged on stderr; debug shows tracebacks as well.")
    ] = _Level.info,  # type: ignore[attr-defined]
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name under which browsers and Prometheus ask, besides addresses, localhost and this host's own. "
            "May be repeated.",
        ),
    ] = None,
    scrape_timeout: Annotated[
        float, typer.Option(min=0.1, max=60.0, metavar="SECONDS", help="For one sandbox to answer a scrape.")
    ] = 1.5,
    _version: Annotated[bool, version_option(PROGRAM)] = False,
) -> None:
    """Serve the metrics of all sandboxes of this host to Prometheus, and a page about them to people.

    It changes nothing and asks nobody for a password: whoever reaches the address sees the sandboxes.
    """
    level = _LEVELS[log_level.value]
    context.obj.debug = level == logging.DEBUG
    require_root(PROGRAM)
    # Imported here: the help does without.
    from kata.monitor.http import listen

    listener = listen(listen_address)
    log_to_stderr(PROGRAM, level)
    # Of each request that is none it logs that it was none.
    logging.getLogger("uvicorn").setLevel(max(level, logging.ERROR))
    # Each sandbox takes a connection, and two more while it is asked.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with listener, contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_serve(listener, scrape_timeout, host or []))


async def _serve(listener: socket.socket, timeout: float, names: Sequence[str]) -> None:
    from kata.monitor.app import Monitor
    from kata.monitor.http import serve

    monitor = Monitor(Path(STATE_ROOT), timeout, names)
    following = asyncio.create_task(monitor.sandboxes.run(), name="sandboxes")
    host, port = listener.getsockname()[:2]
    log.info("listening on http://%s:%s", f"[{host}]" if ":" in host else host, port)
    try:
        await serve(monitor.app, listener)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def invoke(arguments: list[str]) -> int:
    """Run one command line and return its exit code; errors have been printed on stderr."""
    return run_command_line(app, PROGRAM, arguments, Invocation(), option="--log-level debug")


def main() -> None:
    """Run the console script `kata-monitor`."""
    use_one_arena()
    occupy_standard_streams()
    sys.exit(invoke(sys.argv[1:]))
