"""The report as one page of HTML without external resources. Pure: figures in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from benchmarks.figures import RATES, Figure, by_name, number, ratio, title
from benchmarks.plot import bars, lines
from benchmarks.report import Report
from benchmarks.style import COLOURS, STYLE
from benchmarks.text import HEADINGS, row

#: The contender of the tiles at the top, and the one it is compared with.
_OURS, _BESIDE = "kata", "runc"


def page(report: Report) -> str:
    """Return the whole page."""
    colours = colours_of(report.figures)
    sections = [_part(report, name, colours) for name in report.parts if report.of(name)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>pykata: measured {escape(report.date[:10])}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f"{_head(report)}{_failures(report)}{_tiles(report)}{''.join(sections)}{_table(report, colours)}"
        f"{_machine(report)}</body>\n</html>\n"
    )


def colours_of(figures: Sequence[Figure]) -> dict[str, int]:
    """Return the number of a colour for each contender, the same in all plots."""
    names = dict.fromkeys(figure.contender for figure in figures)
    return {name: index % COLOURS for index, name in enumerate(names)}


def _head(report: Report) -> str:
    links = [f'<a href="#{escape(name)}">{escape(name)}</a>' for name in report.parts if report.of(name)]
    links += ['<a href="#all">all figures</a>', '<a href="#machine">machine</a>']
    when = f"{report.date.replace('T', ' ')}, {report.seconds / 60:.1f} minutes"
    accelerator = report.machine.get("accelerator", "")
    return (
        "<header>\n<h1>Sandboxes beside runc and bare QEMU</h1>\n"
        f'<p class="soft">{escape(when)}{" · " if accelerator else ""}{escape(accelerator)}</p>\n'
        "<p>Bars and points are medians, whiskers reach from the lowest to the highest value. Runs of the contenders "
        "alternate on one host, so compare within this page: other hosts give other figures and similar "
        f"ratios.</p>\n<nav>{''.join(links)}</nav>\n</header>\n"
    )


def _failures(report: Report) -> str:
    failed = [
        f'<p class="failed"><strong>{escape(name)} failed.</strong> <code>{escape(why)}</code></p>\n'
        for name, why in report.failures.items()
    ]
    return "".join(failed) + "".join(f'<p class="failed">{escape(note)}</p>\n' for note in report.notes)


def _tiles(report: Report) -> str:
    """The first thing of each part that has a ratio, as a summary."""
    tiles = []
    for part in report.parts:
        compared = [
            (figure, times)
            for figure in report.of(part)
            if figure.contender == _OURS and (times := ratio(figure, _BESIDE, report.figures)) is not None
        ]
        if not compared:
            continue
        first = [(figure, times) for figure, times in compared if figure.name == compared[0][0].name]
        figure, times = max(first, key=lambda pair: pair[0].count)
        tiles.append(
            f'<div class="tile"><small>{escape(title(figure))}</small><b>{number(figure.median)} '
            f"{escape(figure.unit)}</b><small>{number(times)} × {_BESIDE}</small></div>\n"
        )
    return f'<div class="tiles">\n{"".join(tiles)}</div>\n' if tiles else ""


def _part(report: Report, name: str, colours: Mapping[str, int]) -> str:
    cards = []
    for what, figures in by_name(report.of(name)).items():
        if figures[0].unit == "failed":
            continue  # it is in the table, and in the failures above
        counts = {figure.count for figure in figures}
        grows = len(counts) > 1
        drawn = lines(figures, colours) if grows else bars(figures, colours)
        unit = figures[0].unit
        caption = f"{unit}{', more is better' if unit in RATES else ''}"
        if grows:
            caption += " by number of sandboxes, logarithmic"
        elif counts != {0}:
            caption += f", {counts.pop()} at a time"
        cards.append(f'<div class="card"><h3>{escape(what)} <span>{escape(caption)}</span></h3>{drawn}</div>\n')
    return (
        f'<section id="{escape(name)}">\n<h2>{escape(name)}</h2>\n'
        f'<p class="soft">{escape(report.parts[name])}</p>\n<div class="cards">\n{"".join(cards)}</div>\n</section>\n'
    )


def _table(report: Report, colours: Mapping[str, int]) -> str:
    rows = []
    for figure in report.figures:
        cells = [escape(cell) for cell in row(figure, report.figures)]
        cells[2] = f'<i class="c{colours[figure.contender]}"></i>{cells[2]}'
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n")
    heading = "".join(f"<th>{escape(name)}</th>" for name in HEADINGS)
    return (
        '<section id="all">\n<h2>All figures</h2>\n<p class="soft">The last two columns are the median divided by that '
        "of runc and of bare QEMU for the same thing. Below 1 is better, except for rates.</p>\n"
        f'<div class="wide"><table>\n<thead><tr>{heading}</tr></thead>\n<tbody>\n{"".join(rows)}</tbody></table>'
        "</div>\n</section>\n"
    )


def _machine(report: Report) -> str:
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>\n" for name, value in report.machine.items())
    return f'<section id="machine">\n<h2>Machine</h2>\n<dl>\n{entries}</dl>\n</section>\n'
