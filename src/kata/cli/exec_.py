"""`kata exec`: its command line."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Annotated

import typer

from kata.cli.options import SandboxName


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "exec",
        context_settings={"allow_interspersed_args": False},
        epilog="The command ends with this process, whatever ends that. The exit code is the command's; 125: kata "
        "failed, 126: not executable, 127: not found.",
    )(exec_)


def exec_(
    context: typer.Context,
    sandbox: SandboxName,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND", help="Program and arguments; without one, a shell.", show_default=False),
    ] = None,
    container: Annotated[
        str | None,
        typer.Option(
            "-c",
            "--container",
            metavar="NAME",
            help="Container: its name in the pod, its id, or the beginning of that; by default the only one beside "
            "the pod's own. SANDBOX may have it as well: NAMESPACE/POD/CONTAINER.",
            show_default=False,
        ),
    ] = None,
    guest: Annotated[
        bool, typer.Option("--guest", help="In the guest itself, beside the agent: needs debug_console_enabled.")
    ] = False,
    interactive: Annotated[bool, typer.Option("-i", "--interactive", help="Forward standard input.")] = False,
    tty: Annotated[bool, typer.Option("-t", "--tty", help="Give the command a terminal.")] = False,
    env: Annotated[
        list[str] | None,
        typer.Option("-e", "--env", metavar="NAME[=VALUE]", help="Set a variable, or pass yours. May be repeated."),
    ] = None,
    workdir: Annotated[
        str | None,
        typer.Option("-w", "--workdir", metavar="DIR", help="Working directory; by default the container's."),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(
            "-u", "--user", metavar="USER[:GROUP]", help="Names or numbers, as in the container; default: its own."
        ),
    ] = None,
    _debug_port: Annotated[
        int, typer.Option("--kata-debug-port", metavar="PORT", help="Accepted for compatibility: there is no port.")
    ] = 1026,
) -> int:
    """Run a command in a container of a running sandbox, and return its exit code.

    Without a command and on a terminal it is a shell, as with -it.
    """
    from kata.cli import request
    from kata.cli.execute import ExecRequest, execute

    # With options of the command's own the parser leaves the dashes in front of it.
    words = (command or [])[1:] if command and command[0] == "--" else command or []
    shell = not words
    on_terminal = shell and os.isatty(0) and sys.stdout.isatty()
    wanted = ExecRequest(
        sandbox=sandbox,
        container=container,
        guest=guest,
        command=tuple(words),
        env=request.parse_env(env or (), os.environ),
        workdir=None if workdir is None else request.parse_workdir(workdir),
        user=user,
        interactive=interactive or on_terminal,
        tty=tty or on_terminal,
    )
    if context.obj.exec_in_guest and not wanted.names_container:
        wanted = replace(wanted, guest=True)
    return execute(wanted)
