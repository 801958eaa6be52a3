"""Plots as SVG for the page. Pure: figures in, text out. Colours and fonts come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from benchmarks.figures import Figure, number

WIDTH = 560
_LABEL = 130
_VALUE = 100
_ROW = 34
_BAR = 16
#: Of plots of lines: height, and the margins left for axes and names.
_HEIGHT, _TOP, _BOTTOM, _LEFT, _RIGHT = 260, 16, 34, 56, 120
_APART = 15


def bars(figures: Sequence[Figure], colours: Mapping[str, int]) -> str:
    """Draw a bar to the median for each contender, with a whisker from the lowest to the highest value.

    Args:
        figures: of the same thing, and so with one unit.
        colours: the number of the colour of each contender.
    """
    scale = (WIDTH - _LABEL - _VALUE) / (max(figure.high for figure in figures) or 1.0)
    drawn = []
    for index, figure in enumerate(figures):
        middle = index * _ROW + _ROW / 2
        low, median, high = (_LABEL + value * scale for value in (figure.low, figure.median, figure.high))
        drawn.append(
            f'<g class="c{colours[figure.contender]}"><title>{_label_of(figure)}</title>'
            f'<text class="name" x="{_LABEL - 10}" y="{middle:.1f}">{escape(figure.contender)}</text>'
            f'<rect class="bar" x="{_LABEL}" y="{middle - _BAR / 2:.1f}" width="{max(median - _LABEL, 1):.1f}" '
            f'height="{_BAR}" rx="2"/>'
            f'<path class="whisker" d="M{low:.1f} {middle:.1f}H{high:.1f}{_cap(low, middle)}{_cap(high, middle)}"/>'
            f'<text class="value" x="{high + 9:.1f}" y="{middle:.1f}">{number(figure.median)} '
            f"{escape(figure.unit)}</text></g>"
        )
    height = len(figures) * _ROW
    axis = f'<path class="axis" d="M{_LABEL} 2V{height - 2}"/>'
    return _svg(height, figures, "".join(drawn) + axis)


def lines(figures: Sequence[Figure], colours: Mapping[str, int]) -> str:
    """Draw medians against the number of sandboxes, which has a logarithmic axis, with whiskers.

    Args:
        figures: of the same thing, each with a count.
        colours: the number of the colour of each contender.
    """
    counts = sorted({figure.count for figure in figures})
    step = nice_step(max(figure.high for figure in figures))
    top = step * math.ceil((max(figure.high for figure in figures) or 1.0) / step)
    span = math.log(counts[-1] / counts[0]) or 1.0

    def across(count: int) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * math.log(count / counts[0]) / span

    def up(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * value / top

    drawn = []
    for index in range(round(top / step) + 1):
        y = up(index * step)
        drawn.append(f'<path class="{"grid" if index else "axis"}" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        drawn.append(f'<text class="tick end" x="{_LEFT - 8}" y="{y:.1f}">{index * step:g}</text>')
    drawn += [
        f'<text class="tick middle" x="{across(count):.1f}" y="{_HEIGHT - _BOTTOM + 16}">{count}</text>'
        for count in counts
    ]
    series: dict[str, list[Figure]] = {}
    for figure in sorted(figures, key=lambda figure: figure.count):
        series.setdefault(figure.contender, []).append(figure)
    names = _spread({name: up(points[-1].median) for name, points in series.items()})
    for name, points in series.items():
        path = "L".join(f"{across(point.count):.1f} {up(point.median):.1f}" for point in points)
        drawn.append(f'<g class="c{colours[name]}"><path class="line" d="M{path}"/>')
        for point in points:
            x, low, high = across(point.count), up(point.low), up(point.high)
            drawn.append(
                f'<g><title>{_label_of(point)}</title><path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}"/>'
                f'<circle cx="{x:.1f}" cy="{up(point.median):.1f}" r="4"/></g>'
            )
        last = points[-1]
        drawn.append(
            f'<text class="value" x="{across(last.count) + 10:.1f}" y="{names[name]:.1f}">{escape(name)} '
            f"{number(last.median)}</text></g>"
        )
    return _svg(_HEIGHT, figures, "".join(drawn))


def nice_step(highest: float) -> float:
    """Return a distance of ticks that is easy to read, for about four ticks up to `highest`."""
    if highest <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(highest / 4))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= highest / 4 * 0.999)


def _spread(wanted: Mapping[str, float]) -> dict[str, float]:
    """Return heights near the wanted ones at which names do not overlap."""
    placed: dict[str, float] = {}
    lowest = math.inf
    for name, y in sorted(wanted.items(), key=lambda item: -item[1]):
        lowest = placed[name] = min(y, lowest - _APART)
    return placed


def _cap(x: float, y: float) -> str:
    return f"M{x:.1f} {y - 5:.1f}V{y + 5:.1f}"


def _label_of(figure: Figure) -> str:
    at = f", {figure.count} at a time" if figure.count else ""
    spread = f"{number(figure.low)} … {number(figure.high)}"
    return escape(f"{figure.contender}{at}: {number(figure.median)} {figure.unit} ({spread}, n = {len(figure.values)})")


def _svg(height: float, figures: Sequence[Figure], content: str) -> str:
    said = escape(f"{figures[0].name}: " + "; ".join(f"{f.contender} {number(f.median)} {f.unit}" for f in figures))
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{said}">{content}</svg>'
