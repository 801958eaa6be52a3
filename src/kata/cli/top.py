"""`kata top`: all sandboxes of this host, live, on a terminal that is left as it was.

Keys change what is shown (`View`), looks at the sandboxes change the figures, and `screen` makes the picture of both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kata.cli.options import SandboxNames
from kata.cli.ps import ago, short
from kata.cli.render import printable
from kata.cli.root import require_root
from kata.cli.stats import Interval
from kata.cli.template import table
from kata.cli.usage import Counters, Rates, View, percent, size

if TYPE_CHECKING:
    from rich.table import Table

#: What each key sorts by; the first is the default. Numbers are sorted with the largest first, texts by the alphabet.
_SORTS: dict[str, tuple[str, Callable[[_Line], Any]]] = {
    "c": ("CPU %", lambda line: -line.rate.cpu),
    "m": ("MEMORY", lambda line: -line.counters.memory),
    "n": ("NET IN", lambda line: -(line.rate.received + line.rate.sent)),
    "d": ("READ", lambda line: -(line.rate.read + line.rate.written)),
    "p": ("PIDS", lambda line: -line.counters.pids),
    "a": ("AGE", lambda line: -line.age),
    "s": ("SANDBOX", lambda line: line.name),
}
_HEADINGS = (
    "SANDBOX",
    "POD",
    "STATE",
    "CPU %",
    "MEMORY",
    "NET IN",
    "NET OUT",
    "READ",
    "WRITE",
    "PIDS",
    "AGE",
)
_NUMBERS = frozenset(_HEADINGS[3:])
#: What is left out where there is no room, the first one first.
_LESS = ("AGE", "PIDS", "WRITE", "READ", "NET OUT", "NET IN", "POD", "STATE")
#: Columns of the terminal between two of the table.
_PADDING = 2
_HELP = "q quit  c m n d p a s sort  r reverse  t containers  ↑ ↓ scroll"
#: Lines of the screen that are no sandbox's: title, headings, rules, help.
_FRAME = 6
_KEYS = {"\x1b[A": "k", "\x1b[B": "j", "\x1b[5~": "K", "\x1b[6~": "J", "\x03": "\x03"}


@dataclass(frozen=True)
class _Line:
    """One line of the picture: a sandbox, or a container beneath it."""

    name: str
    pod: str
    state: str
    counters: Counters
    rate: Rates
    age: float
    is_container: bool = False

    def cells(self) -> tuple[str, ...]:
        per_second = (
            f"{size(one)}/s" for one in (self.rate.received, self.rate.sent, self.rate.read, self.rate.written)
        )
        received, sent, read, written = per_second
        return (
            f"  {self.name}" if self.is_container else self.name,
            self.pod,
            self.state,
            percent(self.rate.cpu),
            size(self.counters.memory),
            "" if self.is_container else received,
            "" if self.is_container else sent,
            read,
            written,
            str(self.counters.pids),
            "" if self.is_container else ago(self.age),
        )


@dataclass(frozen=True)
class Choice:
    """What the user has chosen to see.

    Attributes:
        sort: a key of _SORTS.
        is_reverse: whether the last line comes first.
        with_containers: whether containers are shown.
        first: the line at the top.
        ends: whether it is enough.
    """

    sort: str = "c"
    is_reverse: bool = False
    with_containers: bool = False
    first: int = 0
    ends: bool = False

    def after(self, key: str, count: int, room: int) -> Choice:
        """The choice after a key, with so many lines of which so many fit. Other keys change nothing."""
        step = {"j": 1, "k": -1, "J": room, "K": -room, " ": room}.get(key)
        if step is not None:
            return replace(self, first=max(0, min(self.first + step, count - room)))
        if key in _SORTS:
            return replace(self, sort=key, first=0)
        if key == "r":
            return replace(self, is_reverse=not self.is_reverse)
        if key == "t":
            return replace(self, with_containers=not self.with_containers)
        return replace(self, ends=self.ends or key in ("q", "Q", "\x03", "\x04"))


def keys(data: str) -> Iterator[str]:
    """The keys in what a terminal has sent; control sequences that are none of ours are left out."""
    while data:
        known = next((sequence for sequence in _KEYS if data.startswith(sequence)), None)
        if known:
            yield _KEYS[known]
            data = data.removeprefix(known)
        elif data.startswith("\x1b"):
            data = data[1:].lstrip("[O0123456789;")[1:]
        else:
            yield data[0]
            data = data[1:]


def lines(views: Sequence[View], choice: Choice, now: float) -> list[_Line]:
    """The lines of all sandboxes in the order that is chosen, each with its containers beneath it."""
    found: list[tuple[_Line, list[_Line]]] = []
    for view in views:
        told, pod = view.told, view.told.get("pod") or {}
        counters, rate = view.vm or (Counters(), Rates())
        age = max(0.0, now - told["started"]) if told.get("started") else 0.0
        pod_name = f"{pod.get('namespace', '')}/{pod['name']}" if pod.get("name") else ""
        line = _Line(short(told["id"]), pod_name, str(told.get("state", "")), counters, rate, age)
        beneath = [
            _Line(
                str(container.get("name") or "") or short(str(container["id"])),
                "",
                str(container.get("state", "")),
                used,
                container_rate,
                0.0,
                is_container=True,
            )
            for container, used, container_rate in view.containers()
            if choice.with_containers
        ]
        found.append((line, beneath))
    key = _SORTS[choice.sort][1]
    found.sort(key=lambda one: key(one[0]), reverse=choice.is_reverse)
    return [line for sandbox, beneath in found for line in (sandbox, *sorted(beneath, key=key))]


def heading(views: Sequence[View], now: float) -> str:
    """The line above the table: how many there are, and what all use together."""
    used = [found for view in views if (found := view.vm)]
    running = sum(view.told.get("state") == "running" for view in views)
    cpu = percent(sum(rate.cpu for _, rate in used))
    memory = size(sum(counters.memory for counters, _ in used))
    when = time.strftime("%H:%M:%S", time.localtime(now))
    count = f"{len(views)} sandbox{'' if len(views) == 1 else 'es'}, {running} running"
    return f"kata top  {when}  {count}  CPU {cpu}  memory {memory}"


def fitting(rows: Sequence[Sequence[str]], columns: int) -> list[int]:
    """The numbers of the table's columns that fit into so many of a terminal: all, or without the least important."""
    widths = {name: max(map(len, texts)) for name, *texts in zip(_HEADINGS, *rows, strict=True)}
    widths = {name: max(width, len(name)) + _PADDING for name, width in widths.items()}
    for name in _LESS:
        if sum(widths.values()) <= columns:
            break
        del widths[name]
    return [number for number, name in enumerate(_HEADINGS) if name in widths]


def screen(views: Sequence[View], choice: Choice, rows: int, columns: int, now: float) -> Table:
    """The picture for a terminal with so many rows and columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    picture = Table(
        box=box.SIMPLE_HEAD,
        expand=True,
        pad_edge=False,
        title=Text(heading(views, now), style="bold", no_wrap=True, overflow="ellipsis"),
        title_justify="left",
        caption=Text(_HELP, style="dim", no_wrap=True, overflow="ellipsis"),
        caption_justify="left",
    )
    sort = _SORTS[choice.sort][0]
    every = lines(views, choice, now)[choice.first :][: room(rows)]
    cells = [[_cell(cell) for cell in line.cells()] for line in every]
    shown = fitting([_HEADINGS, *cells], columns)
    for name in (_HEADINGS[number] for number in shown):
        justify: Any = "right" if name in _NUMBERS else "left"
        style = "bold reverse" if name == sort else "bold"
        picture.add_column(Text(name, style=style), justify=justify, no_wrap=True, overflow="ellipsis")
    for line, row in zip(every, cells, strict=True):
        # Text, as names may be a guest's, and rich would read markup in a plain string.
        style = "dim" if line.is_container else "red" if line.state in ("dead", "unknown") else ""
        picture.add_row(*(Text(row[number], style=style) for number in shown))
    return picture


def _cell(text: str) -> str:
    indent = "  " if text.startswith("  ") else ""
    return indent + printable(text)


def room(rows: int) -> int:
    """Lines of sandboxes on a terminal with so many rows."""
    return max(1, rows - _FRAME)


def plain(views: Sequence[View], now: float) -> str:
    """The same where there is no terminal."""
    found = lines(views, Choice(), now)
    return heading(views, now) + "\n" + table([_HEADINGS, *([_cell(cell) for cell in line.cells()] for line in found)])


def command(
    sandboxes: SandboxNames = None,
    interval: Interval = 2.0,
) -> int:
    """Show what sandboxes use, live; without a terminal once."""
    require_root("kata top")
    import asyncio

    from kata.cli.observe import Observer
    from kata.cli.top_live import run

    return asyncio.run(run(Observer(sandboxes or ()), interval))
