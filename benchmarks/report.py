"""The report of a run: figures, the host, and what failed; to and from JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from benchmarks.figures import Figure
from kata.errors import InvalidArgument


@dataclass(frozen=True)
class Report:
    """The results of a run.

    Attributes:
        date: when it began, ISO 8601.
        machine: the host's description, by name.
        parts: the sentence of each part that was measured.
        figures: in the order of measuring.
        failures: why a part or contender failed, by name.
        notes: what else a reader has to know.
        seconds: length of the whole run.
    """

    date: str
    machine: Mapping[str, str]
    parts: Mapping[str, str]
    figures: tuple[Figure, ...]
    failures: Mapping[str, str]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def of(self, part: str) -> list[Figure]:
        """Return the figures of one part."""
        return [figure for figure in self.figures if figure.part == part]


def to_json(report: Report) -> str:
    """Write a report as JSON; medians are included for people."""
    figures = [{**asdict(figure), "median": figure.median} for figure in report.figures]
    return json.dumps({**asdict(report), "figures": figures}, indent=2, ensure_ascii=False) + "\n"


def from_json(text: str) -> Report:
    """Read a report that `to_json` has written.

    Raises:
        InvalidArgument: it is not one.
    """
    try:
        data = json.loads(text)
        figures = []
        for entry in data.pop("figures"):
            entry.pop("median")
            values = tuple(float(value) for value in entry.pop("values"))
            figures.append(Figure(values=values, **entry))
        notes = tuple(data.pop("notes"))
        return Report(figures=tuple(figures), notes=notes, **data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidArgument(f"this is not a report of the benchmark: {error!r}") from error
