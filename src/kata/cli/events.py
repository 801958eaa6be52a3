"""`kata events`: what has happened in the sandboxes of this host, and what happens from now on.

What has happened is in each state directory; what happens is told over the management socket. A client connects first
and reads the file then, so that it misses nothing, and what is in both is shown once.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from kata.cli.moments import parse_since
from kata.cli.options import AsJson, complete_sandbox
from kata.cli.render import ExitCode, printable
from kata.cli.root import require_root
from kata.errors import KataError, NotFound
from kata.logs.entry import format_time

#: Seconds for a sandbox to begin to answer, and between two looks for new ones.
_ANSWER_TIMEOUT_S = 5.0
_LOOK_INTERVAL_S = 0.5
#: Bytes of an event; a longer one is left out.
_MAX_EVENT = 64 << 10
#: Events of a sandbox that are remembered, so that none is told twice: more than a state directory keeps.
_MAX_SEEN = 2048


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
        return printable(f"{when} {self.sandbox} {self.type} {self.container}{detail}")

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


async def told(sandbox: str, pieces: AsyncIterable[bytes]) -> AsyncIterator[Told]:
    """The events of a stream of server-sent events."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        rest = rest if len(rest) <= _MAX_EVENT else b""
        for line in lines:
            if line.startswith(b"data:") and (event := parse_event(sandbox, line.removeprefix(b"data:"))):
                yield event


def command(
    sandboxes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SANDBOX",
            help="Ids of sandboxes; all if none is named.",
            autocompletion=complete_sandbox,
            show_default=False,
        ),
    ] = None,
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
    directories = _directories(wanted)
    if not follow:
        found = sorted((event for directory in directories for event in kept(directory)), key=lambda event: event.time)
        _print((event for event in found if event.time >= moment), as_json=as_json)
        return ExitCode.OK
    asyncio.run(_follow(wanted, moment, as_json=as_json))
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


def _directories(wanted: frozenset[str]) -> list[Path]:
    """The state directories of these sandboxes, or of all, as far as they are there."""
    from kata.cli.sandboxes import directories

    return [one for one in directories() if not wanted or one.name in wanted]


async def _follow(wanted: frozenset[str], since: float, *, as_json: bool) -> None:
    """Until every sandbox that was named has ended, or for ever."""
    watches = {directory.name: _Watch(directory, since, as_json) for directory in _directories(wanted)}
    past = sorted((event for watch in watches.values() for event in watch.kept()), key=lambda event: event.time)
    _print(past, as_json=as_json)
    tasks = {name: asyncio.create_task(watch.run()) for name, watch in watches.items()}
    try:
        while tasks or not wanted:
            await asyncio.sleep(_LOOK_INTERVAL_S)
            for directory in _directories(wanted):
                if directory.name not in tasks:
                    tasks[directory.name] = asyncio.create_task(_Watch(directory, since, as_json).run())
            for name, task in list(tasks.items()):
                if task.done():
                    task.result()
                    del tasks[name]
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


class _Watch:
    """The events of one sandbox, each told once."""

    def __init__(self, directory: Path, since: float, as_json: bool) -> None:
        self._directory = directory
        self._since = since
        self._as_json = as_json
        self._seen: deque[str] = deque(maxlen=_MAX_SEEN)

    def kept(self) -> list[Told]:
        """Those that have been written down and not been told yet."""
        return [event for event in kept(self._directory) if self._is_new(event)]

    def _is_new(self, event: Told) -> bool:
        if event.json in self._seen:
            return False
        self._seen.append(event.json)
        return event.time >= self._since

    async def run(self) -> None:
        """Tell until the sandbox has ended."""
        from kata.management.client import stream

        while self._directory.is_dir():
            try:
                async with stream(self._directory, "/events", timeout=_ANSWER_TIMEOUT_S) as pieces:
                    _print(self.kept(), as_json=self._as_json)
                    async for event in told(self._directory.name, pieces):
                        if self._is_new(event):
                            _print([event], as_json=self._as_json)
            except KataError:
                _print(self.kept(), as_json=self._as_json)  # it starts, has ended, or is another version's
            await asyncio.sleep(_LOOK_INTERVAL_S)


def _print(events: Iterable[Told], *, as_json: bool) -> None:
    for event in events:
        print(event.json if as_json else event.line, flush=True)
