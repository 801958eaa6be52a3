"""`kata metrics`: of one sandbox all that it measures, or of all sandboxes where their start time went."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kata.cli.options import complete_sandbox
from kata.cli.render import ExitCode


def command(
    sandbox: Annotated[
        str | None,
        typer.Argument(
            metavar="SANDBOX",
            help="Print all that this sandbox measures of itself. Without: the start phases of all sandboxes.",
            autocompletion=complete_sandbox,
            show_default=False,
        ),
    ] = None,
) -> int:
    """Print metrics in the text format of Prometheus."""
    if sandbox is None:
        from kata.cli import timings

        print(timings.as_metrics(timings.load_all()), end="")
    else:
        from kata.cli.management import call
        from kata.cli.root import require_root

        require_root("kata metrics SANDBOX")
        sys.stdout.buffer.write(call(sandbox, "GET", "/metrics"))
    return ExitCode.OK
