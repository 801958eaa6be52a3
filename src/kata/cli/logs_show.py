"""`kata logs SANDBOX`: what the parts of one sandbox have logged, and what they log from then on.

A part's log is a ring file in the state directory, of which the end is there. Control characters are removed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kata.cli.options import SandboxName
from kata.cli.ps import short
from kata.cli.render import ExitCode, printable
from kata.cli.root import require_root
from kata.errors import KataError, NotFound
from kata.logs.entry import Entry, Kind, format_time
from kata.logs.parse import Origin, parse_line
from kata.logs.visible import visible

#: Seconds between two looks at the files, and for a sandbox to say where its VM's are.
_LOOK_INTERVAL_S = 0.3
_ANSWER_TIMEOUT_S = 2.0
#: Reads of one log in a row; one gives 64 KiB at most, and four give all that is kept.
_MAX_READS = 16


class Component(StrEnum):
    """Whose log."""

    GUEST = "guest"
    AGENT = "agent"
    SHIM = "shim"
    QEMU = "qemu"
    VIRTIOFSD = "virtiofsd"


@dataclass(frozen=True)
class _File:
    """A log, and what is in it.

    Attributes:
        name: of the file.
        origin: as `kata.logs.parse` knows it.
        components: of which it has lines.
        of_vm: whether the VM's directory has it: one from standby keeps its own.
    """

    name: str
    origin: Origin
    components: frozenset[Component]
    of_vm: bool


_FILES = (
    _File("console.log", Origin.CONSOLE, frozenset({Component.GUEST, Component.AGENT}), True),
    _File("shim.log", Origin.LOG, frozenset({Component.SHIM}), False),
    _File("qemu.log", Origin.QEMU, frozenset({Component.QEMU, Component.VIRTIOFSD}), True),
)


def component_of(entry: Entry, origin: Origin) -> Component:
    """Whose line it is. The guest's kernel and its agent share a console; QEMU and its file server share a file."""
    if origin is Origin.CONSOLE:
        return Component.AGENT if entry.kind is Kind.RECORD else Component.GUEST
    if origin is Origin.QEMU:
        return Component.VIRTIOFSD if "virtiofsd" in entry.msg else Component.QEMU
    return Component.SHIM


@dataclass(frozen=True)
class Line:
    """A line of one of the logs.

    Attributes:
        time: nanoseconds since 1970: its own, or that of the line before it; None if there is none.
        component: whose it is.
        text: as it was written, without what a terminal would interpret.
        entry: what it says.
    """

    time: int | None
    component: Component
    text: str
    entry: Entry


class Log:
    """One file, from the beginning of what is kept, and as it grows."""

    def __init__(self, file: _File, path: Path) -> None:
        from kata.runtime.hypervisor.console import MAX_LOG_BYTES, Follower

        self._file = file
        self._follower = Follower(path, MAX_LOG_BYTES)
        self._older = path.with_name(f"{path.name}.1")
        self._time: int | None = None

    def history(self) -> list[Line]:
        """All lines that are kept."""
        from kata.runtime.hypervisor.console import printable

        try:
            older = printable(self._older.read_bytes().decode(errors="replace"))
        except OSError:
            older = ""
        return list(self._lines(older + self._read()))  # a line may begin in the one and end in the other

    def more(self) -> list[Line]:
        """What has been written since the last call."""
        return list(self._lines(self._read()))

    def _read(self) -> str:
        found = ""
        # A guest that writes faster than it is read does not keep the other logs from being shown.
        for _ in range(_MAX_READS):
            if not (said := self._follower.read()):
                break
            found += said
        return found

    def _lines(self, text: str) -> Iterator[Line]:
        for line in text.split("\n"):
            entry = parse_line(line, self._file.name, 0, self._file.origin)
            if entry is not None:
                self._time = self._time if entry.time is None else entry.time
                yield Line(self._time, component_of(entry, self._file.origin), line, entry)

    def close(self) -> None:
        """Close the file."""
        self._follower.close()


def chosen(lines: Iterable[Line], component: Component | None, since: float | None) -> list[Line]:
    """The lines of a component, or all; of those since a moment, sorted by time."""
    # The console is whole with what the agent has written to it.
    wanted = {component, Component.AGENT} if component is Component.GUEST else {component}
    kept = [line for line in lines if component is None or line.component in wanted]
    if since is not None:
        kept = [line for line in kept if line.time is not None and line.time >= since * 1e9]
    return sorted(kept, key=lambda line: line.time or 0)


def formatted(line: Line) -> str:
    """A line among those of other components: time, component, level, message, other fields."""
    entry = line.entry
    data = "".join(
        f" {key}={value if value.isprintable() and ' ' not in value else json.dumps(value)}"
        for key, value in entry.data.items()
        if key not in ("subsystem", "version", "ts", "level")
    )
    container = f" container={short(entry.container)}" if entry.container else ""
    when = format_time(entry.time)[:23] + "Z" if entry.time is not None else ""
    head = visible(f"{when:24}  {line.component:9}  {entry.level:7}")
    return f"{head}  {printable(f'{entry.msg}{container}{data}')}"


def command(
    sandbox: SandboxName,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on as the logs grow, until the sandbox ends.")
    ] = False,
    component: Annotated[
        Component | None,
        typer.Option(
            "-c",
            "--component",
            metavar="|".join(Component),
            help="Only this one's log, as it was written.",
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Only what is younger: 10m, 1h30m, or a time of RFC 3339.", show_default=False
        ),
    ] = None,
    lines: Annotated[
        int | None,
        typer.Option("-n", "--lines", metavar="NUMBER", min=0, help="Begin with so many lines.", show_default=False),
    ] = None,
) -> int:
    """Print what guest, agent, shim and QEMU of a sandbox have logged, in the order of time."""
    from kata.cli.moments import parse_since

    moment = None if since is None else parse_since(since)
    require_root("kata logs")
    directory = _directory(sandbox)
    logs = _open(directory, component)
    try:
        shown = chosen((line for log in logs for line in log.history()), component, moment)
        if lines is not None:
            shown = shown[len(shown) - min(lines, len(shown)) :]
        _print(shown, component)
        while follow:
            # Looked at before the logs are, so that nothing is missed that is written before it goes.
            ends = not directory.is_dir()
            _print(chosen((line for log in logs for line in log.more()), component, moment), component)
            if ends:
                break
            time.sleep(_LOOK_INTERVAL_S)
    finally:
        for log in logs:
            log.close()
    return ExitCode.OK


def _directory(sandbox: str) -> Path:
    from kata.cli.management import directory_of

    directory = directory_of(sandbox)
    if not directory.is_dir():
        raise NotFound(f"sandbox {sandbox} does not exist", hint="kata list shows all sandboxes")
    return directory


def _open(directory: Path, component: Component | None) -> list[Log]:
    """The logs that have lines of a component, or all.

    Raises:
        NotFound: there is none.
    """
    wanted = [file for file in _FILES if component is None or component in file.components]
    of_vm = _directory_of_vm(directory) if any(file.of_vm for file in wanted) else directory
    paths = [(file, (of_vm if file.of_vm else directory) / file.name) for file in wanted]
    found = [Log(file, path) for file, path in paths if os.path.lexists(path)]
    if not found:
        raise NotFound(
            f"sandbox {directory.name} keeps no log of its {component or 'parts'}",
            hint="it has just begun, or another version has started it; the container engine's log may have more",
        )
    return found


def _directory_of_vm(directory: Path) -> Path:
    if os.path.lexists(directory / "console.log"):
        return directory
    import asyncio

    from kata.management.client import request

    try:
        answer = asyncio.run(request(directory, "GET", "/sandbox", timeout=_ANSWER_TIMEOUT_S))
        return Path(json.loads(answer)["vm"]["log_directory"])
    except (KataError, ValueError, KeyError, TypeError):
        return directory


def _print(lines: Sequence[Line], component: Component | None) -> None:
    for line in lines:
        print(line.text.expandtabs() if component else formatted(line))
    if lines:
        print(end="", flush=True)
