"""All of a run: figures, the machine, and what went wrong. JSON in and out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from benchmarks.figures import Figure
from kata.errors import InvalidArgument


@dataclass(frozen=True)
class Report:
    """What a run has found.

    Attributes:
        date: when it began, ISO 8601.
        machine: what is said of it, by name.
        parts: what was measured, name to a sentence.
        figures: in the order of measuring.
        failures: part or contender to why it failed.
        notes: what else a reader has to know.
        seconds: what the whole run took.
    """

    date: str
    machine: Mapping[str, str]
    parts: Mapping[str, str]
    figures: tuple[Figure, ...]
    failures: Mapping[str, str]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def of(self, part: str) -> list[Figure]:
        """The figures of one part."""
        return [figure for figure in self.figures if figure.part == part]


def to_json(report: Report) -> str:
    """The report as JSON; the medians are in it for people."""
    figures = [{**asdict(figure), "median": figure.median} for figure in report.figures]
    return json.dumps({**asdict(report), "figures": figures}, indent=2, ensure_ascii=False) + "\n"


def from_json(text: str) -> Report:
    """A report that `to_json` has written.

    Raises:
        InvalidArgument: it has not.
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
