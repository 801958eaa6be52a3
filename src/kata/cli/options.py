"""Options that several commands have, so that each has one name and one meaning."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Configuration file to use.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def complete_sandbox(incomplete: str) -> Iterator[str]:
    """Yield the sandboxes of this host that begin with a text, for the completion of a shell: none without root."""
    from kata.runtime.ledger.journal import STATE_ROOT

    try:
        with os.scandir(STATE_ROOT) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return
    yield from (name for name in names if name.startswith(incomplete))


SANDBOX_HELP = "Id of the sandbox (the pod's, or the container's own), its first digits, or NAMESPACE/POD."
SANDBOXES_HELP = "Sandboxes: ids, their first digits, or NAMESPACE/POD."

SandboxName = Annotated[
    str,
    typer.Argument(
        metavar="SANDBOX",
        help=SANDBOX_HELP,
        autocompletion=complete_sandbox,
        show_default=False,
    ),
]

SandboxNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SANDBOX",
        help=f"{SANDBOXES_HELP} All if none is named.",
        autocompletion=complete_sandbox,
        show_default=False,
    ),
]
