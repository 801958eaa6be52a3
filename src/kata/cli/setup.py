"""`kata setup` and `kata unset`: what this host lacks, and its container engines told of the runtime."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Name(StrEnum):
    """What can be named."""

    CONTAINERD = "containerd"
    DOCKER = "docker"
    CRIO = "crio"
    PODMAN = "podman"
    ALL = "all"


Names = Annotated[
    list[Name] | None,
    typer.Argument(metavar="[containerd|docker|crio|podman|all]...", help="Container engines.", show_default=False),
]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change, and exit.")]
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="containerd's configuration, where it is elsewhere.",
        show_default="/etc/containerd/config.toml",
    ),
]


def setup(names: Names = None, config: Config = None, yes: Yes = False, dry_run: DryRun = False) -> int:
    """Tell container engines of the runtime; without an engine, say what this host lacks and how to get it.

    Nothing is restarted. `kata unset` takes it back, byte for byte.
    """
    from kata.cli import engine_setup

    if not names:
        return engine_setup.missing()
    return engine_setup.setup(names, config, yes=yes, dry_run=dry_run)


def unset(names: Names = None, yes: Yes = False, dry_run: DryRun = False) -> int:
    """Take back what `kata setup` has changed, for all engines unless some are named; running sandboxes go on."""
    from kata.cli import engine_setup

    return engine_setup.unset(names or [Name.ALL], yes=yes, dry_run=dry_run)
