"""`kata iptables`: the packet filter of a running sandbox's guest, with the syntax of `kata-runtime iptables`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kata.cli import given_file
from kata.cli.options import SANDBOX_HELP, complete_sandbox
from kata.cli.render import ExitCode
from kata.logs.visible import visible
from kata.management.protocol import MAX_BODY

app = typer.Typer(help="Read and write the packet filter of a running sandbox's guest.", no_args_is_help=True)

SandboxId = Annotated[
    str,
    typer.Option(
        "--sandbox-id",
        metavar="ID",
        help=SANDBOX_HELP,
        autocompletion=complete_sandbox,
    ),
]
Version6 = Annotated[bool, typer.Option("--v6", help="IPv6 instead of IPv4.")]


@app.command()
def get(sandbox_id: SandboxId, v6: Version6 = False) -> int:
    """Print all tables, as iptables-save(8) does."""
    from kata.cli.management import call

    _write(call(sandbox_id, "GET", _path(v6)))
    return ExitCode.OK


@app.command("set")
def set_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Output of iptables-save(8); - for stdin.")],
    sandbox_id: SandboxId,
    v6: Version6 = False,
) -> int:
    """Replace the tables that FILE contains, as iptables-restore(8) does."""
    from kata.cli.management import call

    _write(call(sandbox_id, "PUT", _path(v6), body=given_file.read(file, MAX_BODY)))
    return ExitCode.OK


def _write(said: bytes) -> None:
    """Print what the guest says: as it is for a file or a program, without control characters on a terminal."""
    if not sys.stdout.isatty():
        sys.stdout.buffer.write(said)
        return
    for line in said.decode(errors="backslashreplace").splitlines():
        print(visible(line))


def _path(v6: bool) -> str:
    return "/ip6tables" if v6 else "/iptables"
