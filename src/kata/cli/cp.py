"""`kata cp`: its command line."""

from __future__ import annotations

from typing import Annotated

import typer

from kata.cli.render import ExitCode


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(cp)


def cp(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="SANDBOX[:CONTAINER]:PATH, a path of this host, or - for standard input. "
            "SANDBOX may be NAMESPACE/POD.",
        ),
    ],
    target: Annotated[
        str, typer.Argument(metavar="DST", help="The same; - is standard output, to which a tar archive is written.")
    ],
    archive: Annotated[
        bool, typer.Option("-a", "--archive", help="Keep owners, set-user-id bits, and extended attributes with ACLs.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("-L", "--follow-link", help="If SRC is a symbolic link, copy what it leads to.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress on a terminal.")] = False,
) -> int:
    """Copy files between this host and a container of a running sandbox.

    If DST is a directory, the copy is made in it; SRC/. is what is in the directory SRC.
    """
    from kata.cli.copying import CopyRequest, copy, parse_place

    copy(CopyRequest(parse_place(source), parse_place(target), archive, follow, quiet))
    return ExitCode.OK
