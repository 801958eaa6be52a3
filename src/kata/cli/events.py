"""`kata events`: what has happened in the sandboxes of this host, and what happens from now on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from kata.cli.moments import parse_since
from kata.cli.options import AsJson, SandboxNames
from kata.cli.ps import short
from kata.cli.render import ExitCode, printable
from kata.cli.root import require_root
from kata.errors import NotFound
from kata.logs.entry import format_time
from kata.logs.visible import visible
from kata.runtime.ledger.names import split


@dataclass(frozen=True)
class Told:
    """An event of one sandbox.

    Attributes:
        sandbox: the name of its state directory.
        type: as docs/reference/management.md lists them.
        container: its id; "" for the sandbox's.
        detail: what belongs to it.
        time: seconds since 1970.
    """

    sandbox: str
    type: str
    container: str
    time: float
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """For people."""
        detail = "".join(f" {key}={value}" for key, value in self.detail.items())
        when = format_time(round(self.time * 1e9))[:23] + "Z"
        sandbox, container = short(split(self.sandbox)[0]), short(self.container)
        return f"{when}  {sandbox}  {visible(f'{self.type:18}')}  {printable(container + detail)}".rstrip()

    @property
    def json(self) -> str:
        """For programs."""
        return json.dumps(
            {
                "time": self.time,
                "sandbox": self.sandbox,
                "type": self.type,
                "container": self.container,
                "detail": dict(self.detail),
            }
        )


def parse_event(sandbox: str, text: str | bytes) -> Told | None:
    """One event, as the sandbox has written it; None if it is none, as another version may write."""
    try:
        found = json.loads(text)
        detail = found.get("detail") or {}
        if not isinstance(detail, dict):
            return None
        return Told(sandbox, str(found["type"]), str(found.get("container") or ""), float(found["time"]), detail)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def kept(directory: Path) -> list[Told]:
    """The last events of a sandbox, the oldest first."""
    content = b""
    for name in ("events.log.1", "events.log"):  # a line may begin in the one and end in the other
        try:
            content += (directory / name).read_bytes()
        except OSError:
            continue
    return [event for line in content.splitlines() if (event := parse_event(directory.name, line))]


def command(
    sandboxes: SandboxNames = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what happens, until Ctrl-C.")] = False,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Only what is younger: 10m, 1h30m, or a time of RFC 3339.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Print what has happened in sandboxes: containers created, started, paused, ended, out of memory."""
    moment = 0.0 if since is None else parse_since(since)
    require_root("kata events")
    wanted = _names(sandboxes or ())
    directories = directories_of(wanted)
    if not follow:
        found = sorted((event for directory in directories for event in kept(directory)), key=lambda event: event.time)
        show((event for event in found if event.time >= moment), as_json=as_json)
        return ExitCode.OK
    import asyncio

    from kata.cli.events_follow import follow as follow_events

    asyncio.run(follow_events(wanted, moment, as_json=as_json))
    return ExitCode.OK


def _names(sandboxes: Iterable[str]) -> frozenset[str]:
    """The names of their state directories.

    Raises:
        NotFound: one does not exist.
    """
    from kata.cli.management import directory_of

    found = set()
    for sandbox in sandboxes:
        directory = directory_of(sandbox)
        if not directory.is_dir():
            raise NotFound(f"sandbox {sandbox} does not exist", hint="kata list shows all sandboxes")
        found.add(directory.name)
    return frozenset(found)


def directories_of(wanted: frozenset[str]) -> list[Path]:
    """The state directories of these sandboxes, or of all, as far as they are there."""
    from kata.cli.sandboxes import directories

    return [one for one in directories() if not wanted or one.name in wanted]


def show(events: Iterable[Told], *, as_json: bool) -> None:
    """Print events."""
    for event in events:
        print(event.json if as_json else event.line, flush=True)
