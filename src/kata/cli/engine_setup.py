"""What `kata setup` and `kata unset` do: show the difference, ask, change, say what has to read it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import typer

from kata.cli import check
from kata.cli.installation import damaged
from kata.cli.render import ExitCode, say
from kata.cli.root import require_root
from kata.cli.setup import Name
from kata.engines import host as engines
from kata.engines.host import LAUNCHER, PROGRAMS, RELOAD, Engine, Host, Plan
from kata.errors import FailedPrecondition, KataError, NotFound
from kata.logs.visible import visible
from kata.shim.launcher import launcher_text

#: Debian's package of each program that is not essential there.
_PACKAGES = {"qemu-system-x86_64": "qemu-system-x86", "mkfs.erofs": "erofs-utils"}


def setup(names: Sequence[Name], config: Path | None, *, yes: bool, dry_run: bool) -> int:
    """Set engines up; returns the exit code.

    Args:
        names: of the engines.
        config: containerd's configuration; None for the usual one.
        yes: do not ask.
        dry_run: change nothing.

    Raises:
        KataError: nothing was changed.
    """
    require_root("kata setup")
    host = replace(Host(), containerd_config=config.absolute()) if config else Host()
    plans = engines.make(_present(names, host), host, launcher_text().encode())
    for plan in plans:
        for note in plan.notes:
            say(f"note: {note}")
    return _change(plans, host, yes=yes, dry_run=dry_run, done="is set up already")


def unset(names: Sequence[Name], *, yes: bool, dry_run: bool) -> int:
    """Take back what was set up; returns the exit code.

    Args:
        names: of the engines.
        yes: do not ask.
        dry_run: change nothing.

    Raises:
        KataError: a file was edited since, or cannot be written.
    """
    require_root("kata unset")
    host = Host()
    chosen = [engine for engine in RELOAD if Name.ALL in names or Name(engine) in names]
    plans = [plan for plan in engines.removal(chosen, host) if plan.record.changes]
    if not plans:
        print("nothing was set up")
        return ExitCode.OK
    return _change(plans, host, yes=yes, dry_run=dry_run, done="is not set up")


def _present(names: Sequence[Name], host: Host) -> list[Engine]:
    """The engines that are meant: those that are named, or all that are there and can be served.

    Raises:
        NotFound: none is there.
    """
    if Name.ALL not in names:
        return [Engine(name) for name in dict.fromkeys(names)]
    found = [engine for engine in RELOAD if host.has(engine)]
    if not found:
        raise NotFound(
            f"none of {', '.join(PROGRAMS[engine] for engine in RELOAD)} is installed",
            hint="install one first; kata run needs no engine",
        )
    if host.has(Engine.PODMAN):
        say("note: podman is left out: it cannot use this runtime yet")
    return found


def _change(plans: Sequence[Plan], host: Host, *, yes: bool, dry_run: bool, done: str) -> int:
    changing = [plan for plan in plans if not plan.is_done]
    for plan in plans:
        if plan.is_done and plan.name != LAUNCHER:
            print(f"{plan.name} {done}")
    for plan in changing:
        for line in plan.diff.splitlines():
            print(visible(line.expandtabs()))
    if dry_run or not changing:
        return ExitCode.OK
    if not yes:
        if not sys.stdin.isatty():
            raise FailedPrecondition("nothing was changed: standard input is no terminal", hint="--yes does not ask")
        if not typer.confirm("Change this?"):
            return ExitCode.FAILED
    engines.carry_out(changing, host)
    for plan in changing:
        if plan.name != LAUNCHER:
            print(f"{plan.name} reads it when you run: {RELOAD[Engine(plan.name)]}")
    return ExitCode.OK


def missing() -> int:
    """Print what does not work or is not there, and how to get it; returns the exit code."""
    host = Host()
    packages = [package for program, package in _PACKAGES.items() if not shutil.which(program, path=host.path)]
    rows = [row for row in check.check() if row.status is not check.Status.OK]
    if broken := damaged():
        text = f"{len(broken)} of this installation's files are missing or differ, such as {broken[0]}"
        rows.append(check.Row("installation", check.Status.FAILED, text, "install it again"))
    for row in rows:
        print(check.as_text(row))
    if packages:
        print(f"missing programs; run: apt-get install --no-install-recommends {' '.join(packages)}")
    found = [engine for engine in Engine if host.has(engine)]
    for engine in found:
        print(f"{engine}: {_state(engine, host)}")
    if not found:
        print("no container engine; kata run needs none")
    return ExitCode.OK if check.passed(rows) and not packages else ExitCode.FAILED


def _state(engine: Engine, host: Host) -> str:
    if engine is Engine.PODMAN:
        return "cannot use this runtime yet"
    try:
        return "set up" if host.is_set_up(engine) else f"not set up; run: kata setup {engine}"
    except KataError as error:
        return error.message
