"""A figure, its ratios to its peers, and how to measure so that contenders are treated alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

#: Contenders by whose figures the others' are divided.
REFERENCES = ("runc", "bare qemu")
#: Units of which more is better.
RATES = ("MB/s",)


@dataclass(frozen=True)
class Figure:
    """The measurements of one contender.

    Attributes:
        part: the part of the benchmark that measured it.
        name: what was measured; figures of one name are comparable.
        contender: the contender's name.
        unit: "s", "ms", "MiB", "MB/s" or "failed".
        values: one for each run, or for each sandbox of several.
        count: how many sandboxes there were at the same time; 0 where that does not matter.
    """

    part: str
    name: str
    contender: str
    unit: str
    values: tuple[float, ...]
    count: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


def number(value: float) -> str:
    """Format a number for people: three significant digits, at most three decimals."""
    for limit, decimals in ((100, 0), (10, 1), (1, 2)):
        if abs(value) >= limit:
            return f"{value:,.{decimals}f}"
    return f"{value:.3f}" if value else "0"


def title(figure: Figure) -> str:
    """Return the figure's name, with the number of sandboxes if that matters."""
    return f"{figure.name} ({figure.count})" if figure.count else figure.name


def ratio(figure: Figure, reference: str, figures: Iterable[Figure]) -> float | None:
    """Return the figure's median divided by that of `reference` for the same thing; None if it has none."""
    for other in figures:
        if (other.contender, other.name, other.count) == (reference, figure.name, figure.count) and other.median:
            return figure.median / other.median
    return None


def ratio_text(figure: Figure, reference: str, figures: Iterable[Figure]) -> str:
    """Return the ratio with two decimals; "" without one, and for the reference itself."""
    found = None if figure.contender == reference else ratio(figure, reference, figures)
    return "" if found is None else f"{found:.2f}"


def ordered(figures: Sequence[Figure]) -> tuple[Figure, ...]:
    """Sort figures: comparable ones side by side, otherwise in the order of measuring."""
    names = list(dict.fromkeys((figure.part, figure.name) for figure in figures))
    return tuple(sorted(figures, key=lambda figure: (names.index((figure.part, figure.name)), figure.count)))


def by_name(figures: Sequence[Figure]) -> dict[str, list[Figure]]:
    """Group figures by name, in the order of measuring."""
    groups: dict[str, list[Figure]] = {}
    for figure in figures:
        groups.setdefault(figure.name, []).append(figure)
    return groups


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that an action takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def alternate(
    runs: int, actions: Mapping[str, Callable[[], float]], *, warm_up: bool = True
) -> dict[str, tuple[float, ...]]:
    """Measure actions alternately.

    Args:
        runs: counted runs of each action.
        actions: by contender; each returns its measurement.
        warm_up: whether to run each action once before, uncounted.
    """
    for action in actions.values() if warm_up else ():
        action()
    measured: dict[str, list[float]] = {name: [] for name in actions}
    for _, name in turns(runs, actions):
        measured[name].append(actions[name]())
    return {name: tuple(values) for name, values in measured.items()}


def turns(runs: int, names: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield (run, name) in the order of measuring. Every other run is reversed, so that none always follows another."""
    order = list(names)
    for run in range(runs):
        for name in order if run % 2 == 0 else reversed(order):
            yield run, name
