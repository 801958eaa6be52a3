"""`kata timings`: where the time of a sandbox's start went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from kata.oci.ids import validate_id
from kata.sandbox.ledger import STATE_ROOT
from kata.sandbox.timings import Phase, read

_BAR_WIDTH = 40


def load(sandbox_id: str, state_root: Path = Path(STATE_ROOT)) -> list[Phase]:
    """The phases of a living sandbox.

    Raises:
        InvalidArgument: the id is no id.
        NotFound: there is no such sandbox.
    """
    return read(state_root / validate_id(sandbox_id))


def as_table(phases: Sequence[Phase]) -> Table:
    """A row a phase, with a bar where in the start it lies."""
    end = max((phase.begin_ms + phase.length_ms for phase in phases), default=0.0) or 1.0
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("PHASE", no_wrap=True)
    table.add_column("OF")
    table.add_column("AT ms", justify="right", no_wrap=True)
    table.add_column("TOOK ms", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for phase in phases:
        table.add_row(phase.name, phase.subject, f"{phase.begin_ms:.1f}", f"{phase.length_ms:.1f}", _bar(phase, end))
    return table


def _bar(phase: Phase, end: float) -> str:
    before = min(int(phase.begin_ms / end * _BAR_WIDTH), _BAR_WIDTH - 1)
    return " " * before + "━" * max(1, round(phase.length_ms / end * _BAR_WIDTH))
