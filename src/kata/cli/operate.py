"""`kata stop`, `kill`, `pause` and `resume`: what acts on a running sandbox, whoever started it.

The sandbox does it itself and tells its front end, so that containerd's tasks and `kata run` are right about it.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from kata.cli.options import SANDBOXES_HELP, SandboxName, complete_sandbox
from kata.cli.render import ExitCode, report
from kata.errors import InvalidArgument, KataError

#: Seconds for the sandbox's answer, beside those that it gives its containers.
_ANSWER_TIMEOUT_S = 30.0

Container = Annotated[
    str | None,
    typer.Argument(
        metavar="CONTAINER",
        help="Id of the container, its beginning, or its name; without it, all of them.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (stop, kill, pause, resume):
        app.command()(command)


def stop(
    sandboxes: Annotated[
        list[str],
        typer.Argument(
            metavar="SANDBOX...",
            help=SANDBOXES_HELP,
            autocompletion=complete_sandbox,
        ),
    ],
    force: Annotated[bool, typer.Option("--force", help="At once, and whatever the guest says.")] = False,
    time: Annotated[
        float, typer.Option("-t", "--time", metavar="SECONDS", help="From SIGTERM to SIGKILL.", min=0, max=600)
    ] = 10.0,
) -> int:
    """End all containers of sandboxes, and their VMs."""  # noqa: DOC501 - the text is the command's help
    body = {"force": force} if force else {"timeout": time}
    code = ExitCode.OK
    for sandbox in sandboxes:
        try:
            _stop(sandbox, body, timeout=2 * time + _ANSWER_TIMEOUT_S)
        except KataError as error:
            if len(sandboxes) == 1:
                raise
            report(error)
            code = ExitCode.FAILED
    return code


def kill(
    sandbox: SandboxName,
    container: Container = None,
    signal_: Annotated[
        str, typer.Option("-s", "--signal", metavar="SIGNAL", help="Name or number.", show_default=True)
    ] = "KILL",
) -> int:
    """Send a signal to the init process of a container."""
    _act("kata kill", sandbox, container, "/kill", signal=signal_number(signal_))
    return ExitCode.OK


def pause(sandbox: SandboxName, container: Container = None) -> int:
    """Freeze the processes of a container."""
    _act("kata pause", sandbox, container, "/pause")
    return ExitCode.OK


def resume(sandbox: SandboxName, container: Container = None) -> int:
    """Thaw the processes of a container."""
    _act("kata resume", sandbox, container, "/resume")
    return ExitCode.OK


def signal_number(text: str) -> int:
    """Parse "KILL", "SIGKILL", "kill" or "9".

    Raises:
        InvalidArgument: it is no signal.
    """
    if text.isascii() and text.isdecimal() and len(text) < 3 and 0 < int(text) <= 64:
        return int(text)
    name = text.upper()
    found = signal.Signals.__members__.get(name if name.startswith("SIG") else f"SIG{name}")
    if found is None:
        raise InvalidArgument(
            f"there is no signal {text[:20]!a}", hint="write a name such as TERM, or a number (1 to 64)"
        )
    return found.value


def _stop(sandbox: str, body: Mapping[str, Any], *, timeout: float) -> None:
    from kata.cli.management import call
    from kata.cli.root import require_root

    require_root("kata stop")
    call(sandbox, "POST", "/stop", body=json.dumps(body).encode(), timeout=timeout)


def _act(command: str, sandbox: str, container: str | None, path: str, **fields: int) -> None:
    """Have a sandbox do something with a container, or with all."""
    import asyncio

    from kata.cli.root import require_root
    from kata.cli.running import RunningSandbox

    require_root(command)
    asyncio.run(RunningSandbox(sandbox).act(path, container, fields, timeout=_ANSWER_TIMEOUT_S))
