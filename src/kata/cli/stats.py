"""`kata stats`: what sandboxes and their containers use, as a table that goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kata.cli.options import AsJson, SandboxNames
from kata.cli.ps import short
from kata.cli.render import ExitCode
from kata.cli.root import require_root
from kata.cli.template import Template, render
from kata.cli.usage import Counters, Rates, View, percent, size

if TYPE_CHECKING:
    from kata.cli.observe import Observer

COLUMNS = {
    "SANDBOX": "Sandbox",
    "CONTAINER": "Container",
    "NAME": "Name",
    "CPU %": "CPUPerc",
    "MEM USAGE / LIMIT": "MemUsage",
    "MEM %": "MemPerc",
    "NET I/O": "NetIO",
    "BLOCK I/O": "BlockIO",
    "PIDS": "PIDs",
}
#: Seconds between the two samples of --no-stream.
_SHORT_S = 1.0
_CLEAR = "\x1b[H\x1b[J"

Interval = Annotated[
    float, typer.Option("--interval", metavar="SECONDS", min=0.1, max=3600, help="Time between two looks.")
]


def rows(views: Sequence[View]) -> Iterator[dict[str, Any]]:
    """A row for each sandbox, with its VM's figures, and one for each of its containers."""
    for view in views:
        sandbox = short(view.told["id"])
        pod = view.told.get("pod") or {}
        yield _row(sandbox, "VM", pod.get("name") or "", *(view.vm or (None, None)))
        for container, counters, rate in view.containers():
            yield _row(sandbox, short(str(container["id"])), str(container.get("name") or ""), counters, rate)


def _row(sandbox: str, container: str, name: str, counters: Counters | None, rate: Rates | None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS.values())
    row |= {"Sandbox": sandbox, "Container": container, "Name": name}
    if counters is None or rate is None:
        return row
    limit = f" / {size(counters.limit)}" if counters.limit else " / -"
    return row | {
        "CPUPerc": percent(rate.cpu),
        "MemUsage": size(counters.memory) + limit,
        "MemPerc": percent(counters.memory / counters.limit) if counters.limit else None,
        "NetIO": f"{size(counters.received)} / {size(counters.sent)}" if container == "VM" else None,
        "BlockIO": f"{size(counters.read)} / {size(counters.written)}",
        "PIDs": counters.pids,
    }


def as_json(views: Sequence[View]) -> list[dict[str, Any]]:
    """The figures as numbers."""

    def figures(found: tuple[Counters, Rates] | None) -> dict[str, Any]:
        if found is None:
            return {}
        counters, rate = found
        return {
            "cpu_percent": round(rate.cpu * 100, 2),
            "memory_bytes": counters.memory,
            "memory_limit_bytes": counters.limit,
            "pids": counters.pids,
            "read_bytes": counters.read,
            "written_bytes": counters.written,
        }

    return [
        {
            "sandbox": view.told["id"],
            "namespace": view.told.get("namespace", ""),
            "time": view.after.time if view.after else None,
            "vm": {
                **figures(view.vm),
                **({"rx_bytes": view.after.vm.received, "tx_bytes": view.after.vm.sent} if view.after else {}),
            },
            "containers": {str(told["id"]): figures((counters, rate)) for told, counters, rate in view.containers()},
        }
        for view in views
    ]


def command(
    sandboxes: SandboxNames = None,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print once, after a second, and exit.")] = False,
    interval: Interval = 2.0,
    template: Template = None,
    json_: AsJson = False,
) -> int:
    """Show CPU, memory, network and disk of sandboxes and their containers, again and again, until Ctrl-C."""
    import asyncio

    from kata.cli.observe import Observer

    require_root("kata stats")
    asyncio.run(_show(Observer(sandboxes or ()), template, interval=interval, once=no_stream, in_json=json_))
    return ExitCode.OK


async def _show(observer: Observer, template: str | None, *, interval: float, once: bool, in_json: bool) -> None:
    import asyncio

    views = await observer.look()
    clear = _CLEAR if sys.stdout.isatty() and template is None and not in_json and not once else ""
    pause = min(_SHORT_S, interval)
    while views or observer.watches_all:
        await asyncio.sleep(pause)
        pause = interval
        views = await observer.look()
        text = json.dumps(as_json(views)) + "\n" if in_json else render(template, list(rows(views)), COLUMNS)
        print(clear + text, end="", flush=True)
        if once:
            return
