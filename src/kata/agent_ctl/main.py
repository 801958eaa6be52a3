"""The command line `kata-agent-ctl`: options to a session, results to exit codes. Names and options are Kata's."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from kata.agent_ctl.messages import LEVELS, PROGRAM, Log
from kata.cli.program import Invocation, occupy_standard_streams, run_command_line, version_option

app = typer.Typer(
    name=PROGRAM,
    help="Make single calls to a Kata agent: a tool for tests and for looking into a guest. "
    "It can confuse whatever else uses the agent, and kill its containers.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Level = Enum("_Level", {level: level for level in LEVELS}, type=str)  # type: ignore[misc]


@dataclass
class _Invocation(Invocation):
    level: str = "info"


@app.callback()
def _agent_ctl(
    context: typer.Context,
    _version: Annotated[bool, version_option(PROGRAM)] = False,
    log_level: Annotated[
        _Level, typer.Option("-l", "--log-level", help="What is said on stderr; debug shows requests, and tracebacks.")
    ] = _Level.info,  # type: ignore[attr-defined]
) -> None:
    invocation: _Invocation = context.obj
    invocation.level = log_level.value
    invocation.debug = Log(invocation.level).shows("debug")


@app.command(
    epilog="The exit code is 0, 1 after an error, 2 for a mistake in the command line or in a command, of which none "
    "is sent then, or 128+n after signal n.",
)
def connect(
    context: typer.Context,
    hypervisor: Annotated[str | None, typer.Argument(metavar="HYPERVISOR", hidden=True)] = None,
    server_address: Annotated[
        str | None,
        typer.Option(metavar="URI", help="unix:///PATH, unix://@NAME or vsock://CID:PORT.", show_default=False),
    ] = None,
    sandbox: Annotated[
        str | None,
        typer.Option(
            metavar="SANDBOX",
            help="The agent of this running sandbox: its id, or NAMESPACE/POD. Needs root.",
            show_default=False,
        ),
    ] = None,
    vm: Annotated[
        bool, typer.Option("--vm", help="Boot a guest, connect to its agent, and end it afterwards. Needs root.")
    ] = False,
    bundle_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="OCI bundle that containers are made of.", show_default=False)
    ] = None,
    command: Annotated[
        list[str] | None,
        typer.Option(
            "-c",
            "--cmd",
            metavar="COMMAND",
            help="An RPC with its arguments, or a built-in command, such as "
            "`list`, which lists them all. May be repeated.",
        ),
    ] = None,
    interactive: Annotated[
        bool, typer.Option("-i", "--interactive", help="Read commands from a prompt, or from a pipe, one a line.")
    ] = False,
    ignore_errors: Annotated[bool, typer.Option("--ignore-errors", help="Go on after a call that fails.")] = False,
    timeout: Annotated[
        str, typer.Option(metavar="TIME", help="For the answer to each call: 500ms, 5s, 1m30s; 0 is for ever.")
    ] = "0",
    hybrid_vsock: Annotated[
        bool,
        typer.Option("--hybrid-vsock", help="The Unix socket is that of a VMM, which connects to a port of its guest."),
    ] = False,
    hybrid_vsock_port: Annotated[int, typer.Option(metavar="PORT", help="That port.")] = 1024,
    no_auto_values: Annotated[
        bool, typer.Option("-n", "--no-auto-values", help="Send requests with what the commands say, and nothing else.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each answer as a line of JSON.")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Configuration of --vm.", show_default=False)
    ] = None,
) -> int:
    """Connect to an agent, and send it commands."""
    from kata.agent_ctl import run

    return run.run(
        run.Request(
            server_address=server_address,
            sandbox=sandbox,
            hybrid_port=hybrid_vsock_port if hybrid_vsock else None,
            vm=vm,
            hypervisor=hypervisor,
            bundle=bundle_dir,
            commands=command or [],
            interactive=interactive,
            ignore_errors=ignore_errors,
            timeout=timeout,
            automatic=not no_auto_values,
            as_json=as_json,
            config=config,
            level=context.obj.level,
        )
    )


@app.command()
def generate_cid() -> None:
    """Print a random container id."""
    from kata.agent_ctl.automatic import random_id

    print(random_id())


@app.command()
def generate_sid() -> None:
    """Print a random sandbox id."""
    from kata.agent_ctl.automatic import random_id

    print(random_id())


@app.command()
def examples() -> None:
    """Show examples."""
    from kata.agent_ctl import examples as of_use

    print(of_use.text(), end="")


def invoke(arguments: list[str]) -> int:
    """Run one command line and return its exit code; errors have been printed on stderr."""
    return run_command_line(app, PROGRAM, arguments, _Invocation(), option="-l debug")


def main() -> None:
    """Run the console script `kata-agent-ctl`."""
    occupy_standard_streams()
    sys.exit(invoke(sys.argv[1:]))
