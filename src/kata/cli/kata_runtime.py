"""`kata-runtime`: the commands of `kata` under Kata's name, with the options that Kata's has before a command.

What of these has no meaning here is accepted, so that scripts go on working, and says so.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kata.cli import check, env
from kata.cli.main import KataInvocation, app
from kata.cli.program import version_option
from kata.cli.render import warn
from kata.errors import ResourceExhausted
from kata.runtime.config.loader import SYSTEM_PATHS

PROGRAM = "kata-runtime"

kata_runtime = typer.Typer(
    name=PROGRAM,
    help="Look at this host and its sandboxes: the commands of kata under Kata's name.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
kata_runtime.registered_commands.extend(app.registered_commands)
kata_runtime.registered_groups.extend(app.registered_groups)
kata_runtime.command("kata-check", hidden=True)(check.command)
kata_runtime.command("kata-env", hidden=True)(env.command)


class LogFormat(StrEnum):
    """How a line of the log is written."""

    TEXT = "text"
    JSON = "json"


class Rootless(StrEnum):
    """Kata's values."""

    TRUE = "true"
    FALSE = "false"
    AUTO = "auto"


def _print_paths(wanted: bool) -> None:
    if wanted:
        print("\n".join(map(str, SYSTEM_PATHS)))
        raise typer.Exit


@kata_runtime.callback()
def _kata_runtime(
    context: typer.Context,
    _version: Annotated[bool, version_option(PROGRAM, "-v")] = False,
    _paths: Annotated[
        bool,
        typer.Option(
            "--show-default-config-paths",
            "--kata-show-default-config-paths",
            callback=_print_paths,
            is_eager=True,
            help="Print where a configuration is looked for, and exit.",
        ),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "--kata-config", metavar="FILE", help="Configuration file to use.", show_default=False
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option("--log", metavar="FILE", help="Append a log of this command to a file.", show_default=False),
    ] = None,
    log_format: Annotated[
        LogFormat, typer.Option("--log-format", metavar="text|json", help="Of that log.")
    ] = LogFormat.TEXT,
    root: Annotated[
        Path | None, typer.Option("--root", metavar="DIR", help="Without effect here.", show_default=False)
    ] = None,
    rootless: Annotated[
        Rootless, typer.Option("--rootless", metavar="true|false|auto", help="Without effect here.")
    ] = Rootless.AUTO,
    systemd_cgroup: Annotated[bool, typer.Option("--systemd-cgroup", help="Without effect here.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print Python's traceback of an error.")] = False,
) -> None:
    invocation: KataInvocation = context.obj
    invocation.debug = debug
    invocation.command = context.invoked_subcommand or ""
    invocation.exec_in_guest = True  # Kata's `exec` is its debug console
    if config is not None:
        os.environ["KATA_CONF_FILE"] = str(config)  # what every command goes by that gets no --config of its own
    if log is not None:
        from kata.cli import log_file

        try:
            invocation.log = log_file.open_log(log, as_json=log_format is LogFormat.JSON)
        except OSError as error:
            raise ResourceExhausted(f"cannot write {log}: {(error.strerror or str(error)).lower()}") from error
    for option, is_set, reason in (
        ("--root", root is not None, "the state of sandboxes is in /run/kata"),
        ("--rootless", rootless is Rootless.TRUE, "sandboxes need root"),
        ("--systemd-cgroup", systemd_cgroup, "a sandbox's cgroup follows from its container engine"),
    ):
        if is_set:
            warn(f"{option} has no effect: {reason}")
