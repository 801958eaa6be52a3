"""The report: Markdown with a table of rounds and one drawing. Pure: outcomes in, text out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.figures import number
from benchmarks.plot import nice_step
from tools.soak.figures import QUANTITIES, WARM_UP, Outcome, growing, points_of, slope

DRAWING = "soak.svg"
#: Kills of an hour.
KILLS_AN_HOUR = 500
_SHOWN = 300
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM, _COLUMNS = 420, 150, 58, 30, 14, 24, 2
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1d2126}.soft{fill:#626b76}.grid{stroke:#e2e5e9}"
    ".line{fill:none;stroke:#2563c9;stroke-width:1.5}.bad .line{stroke:#b3261e}.warm{fill:#e2e5e9;opacity:.5}"
    "svg{background:#fbfbfa}@media(prefers-color-scheme:dark){text{fill:#e7eaee}.soft{fill:#9aa4b0}"
    ".grid{stroke:#313842}.line{stroke:#6ea3f5}.warm{fill:#313842}svg{background:#14171b}}"
)


@dataclass(frozen=True)
class Soak:
    """What the report is about.

    Attributes:
        seed: of all rounds.
        minutes: that it was to take.
        begun: date and time.
        stopped: why it ended early, or "".
        outcomes: of the rounds that were finished.
        problems: beside those of rounds.
    """

    seed: int
    minutes: float
    begun: str
    stopped: str
    outcomes: Sequence[Outcome]
    problems: Sequence[str] = ()

    @property
    def kills(self) -> int:
        """Of all rounds."""
        return sum(outcome.kills for outcome in self.outcomes)

    @property
    def failures(self) -> list[str]:
        """All that must not be, one sentence each."""
        of_rounds = [f"round {one.number}: {problem}" for one in self.outcomes for problem in one.problems]
        return [*self.problems, *of_rounds, *growing(self.outcomes)]


def markdown(soak: Soak) -> str:
    """The whole report."""
    took = soak.outcomes[-1].seconds / 60 if soak.outcomes else 0.0
    wanted = round(KILLS_AN_HOUR * soak.minutes / 60)
    failures = soak.failures
    lines = [
        "# Soak",
        "",
        f"Begun {soak.begun}, seed {soak.seed}: {len(soak.outcomes)} rounds in {took:.1f} of {soak.minutes:g} minutes"
        + (f", stopped early: {soak.stopped}" if soak.stopped else "")
        + ".",
        "",
        "| | |",
        "|---|---|",
        f"| kills | {soak.kills} ({wanted} are usual in this time) |",
        f"| rounds short of memory, of disk | {_short(soak, 'memory')}, {_short(soak, 'disk')} |",
        f"| rounds with a problem, as something left behind | {sum(bool(one.problems) for one in soak.outcomes)} |",
        f"| verdict | {f'{len(failures)} failures' if failures else 'nothing stays, nothing grows'} |",
        "",
    ]
    if failures:
        lines += ["## Failures", "", *(f"- {_cell(failure)}" for failure in failures), ""]
    lines += [
        "## What is to stay flat",
        "",
        f"After each round; the slope is a line of least squares after {WARM_UP} rounds of warm-up, with twice its "
        "standard error. containerd is restarted now and then; shim and VM are those of one pod that nobody disturbs.",
        "",
        f"![each quantity over the rounds]({DRAWING})",
        "",
        "| | first | last | highest | in 100 rounds | bound |",
        "|---|---|---|---|---|---|",
    ]
    for name, quantity in QUANTITIES.items():
        points = points_of(soak.outcomes, name)
        if points:
            values = [value for _, value in points]
            line = slope(points)
            steep = f"{line.per_100:+.2f} ± {2 * line.error:.2f}" if line else "too few rounds"
            bound = "-" if quantity.bound is None else f"{quantity.bound:g}"
            lines.append(
                f"| {name} | {number(values[0])} | {number(values[-1])} | {number(max(values))} | {steep} | {bound} |"
            )
    lines += ["", "## What ended pods early", "", "| times | step: error |", "|---|---|"]
    reasons = Counter(reason for one in soak.outcomes for reason in one.ended)
    lines += [f"| {count} | {_cell(reason)} |" for reason, count in reasons.most_common(20)]
    lines += ["", "## Rounds", "", "| round | at, s | kills | short of | ended early |", "|---|---|---|---|---|"]
    lines += [
        f"| {one.number} | {one.seconds:.0f} | {one.kills} | {one.pressure} | {len(one.ended)} |"
        for one in soak.outcomes
    ]
    return "\n".join(lines) + "\n"


def _short(soak: Soak, what: str) -> int:
    return sum(what in one.pressure for one in soak.outcomes)


def _cell(text: str) -> str:
    """Text of a program on one line of a table."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    cut = printable if len(printable) <= _SHOWN else f"{printable[:_SHOWN]}…"
    return cut.replace("|", "\\|").replace("<", "&lt;")


def drawing(soak: Soak) -> str:
    """All quantities over the rounds, as one SVG."""
    names = [name for name in QUANTITIES if points_of(soak.outcomes, name)]
    bad = growing(soak.outcomes)
    panels = []
    for index, name in enumerate(names):
        x, y = index % _COLUMNS * _WIDTH, index // _COLUMNS * _HEIGHT
        kind = "bad" if any(one.startswith(name) for one in bad) else "good"
        panel = _panel(name, points_of(soak.outcomes, name))
        panels.append(f'<g class="{kind}" transform="translate({x} {y})">{panel}</g>')
    width, height = _WIDTH * _COLUMNS, _HEIGHT * -(-len(names) // _COLUMNS) or _HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="quantities over {len(soak.outcomes)} rounds"><style>{_STYLE}</style>{"".join(panels)}</svg>\n'
    )


def _panel(name: str, points: Sequence[tuple[float, float]]) -> str:
    first, last = points[0][0], points[-1][0]
    low, high = min(value for _, value in points), max(value for _, value in points)
    # What changes by little is to look flat: the axis spans at least a tenth of the value.
    step = nice_step(max(high - low, high / 10, 1.0))
    bottom = low // step * step
    top = max(bottom + step, -(-high // step) * step)

    def across(x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (x - first) / ((last - first) or 1)

    def up(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * (value - bottom) / (top - bottom)

    warm = max(0.0, across(min(WARM_UP, last)) - _LEFT)
    path = "L".join(f"{across(x):.1f} {up(value):.1f}" for x, value in points)
    ticks = "".join(
        f'<path class="grid" d="M{_LEFT} {up(value):.1f}H{_WIDTH - _RIGHT}"/>'
        f'<text class="soft" x="{_LEFT - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        for value in (bottom, top)
    )
    return (
        f'<rect class="warm" x="{_LEFT}" y="{_TOP}" width="{warm:.1f}" height="{_HEIGHT - _BOTTOM - _TOP}"/>{ticks}'
        f'<text x="{_LEFT}" y="{_TOP - 10}">{escape(name)}</text>'
        f'<text class="soft" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">round {last:g}</text>'
        f'<path class="line" d="M{path}"/>'
    )
