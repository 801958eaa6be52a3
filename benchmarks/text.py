"""The report as text: a table for the terminal, and one in Markdown."""

from __future__ import annotations

from rich.table import Table

from benchmarks.figures import REFERENCES, Figure, number, ratio_text, title
from benchmarks.report import Report

HEADINGS = ("part", "what", "who", "median", "min … max", "runs", *(f"÷ {name}" for name in REFERENCES))
#: The first column with numbers.
_NUMBERS = 3


def row(figure: Figure, figures: tuple[Figure, ...]) -> tuple[str, ...]:
    """Return the cells of a figure, one for each of HEADINGS."""
    return (
        figure.part,
        title(figure),
        figure.contender,
        f"{number(figure.median)} {figure.unit}",
        f"{number(figure.low)} … {number(figure.high)}",
        str(len(figure.values)),
        *(ratio_text(figure, reference, figures) for reference in REFERENCES),
    )


def table(report: Report) -> Table:
    """Return the report as a table for a terminal."""
    made = Table(title="medians, and the spread from the lowest to the highest value")
    for index, heading in enumerate(HEADINGS):
        made.add_column(heading, justify="left" if index < _NUMBERS else "right", no_wrap=index >= _NUMBERS)
    before = None
    for figure in report.figures:
        cells = row(figure, report.figures)
        if before and figure.part != before.part:
            made.add_section()
        same = before is not None and (before.part, title(before)) == (figure.part, title(figure))
        made.add_row("" if before and figure.part == before.part else cells[0], "" if same else cells[1], *cells[2:])
        before = figure
    return made


def markdown(report: Report) -> str:
    """Return the report in Markdown, for the documentation: the host, then the table."""
    lines = [f"Measured {report.date[:10]} in {report.seconds / 60:.0f} minutes.", ""]
    lines += [f"- {name}: {_escaped(value)}" for name, value in report.machine.items()]
    lines += [f"- note: {_escaped(note)}" for note in report.notes]
    lines += [f"- **failed**: {_escaped(name)}: {_escaped(why)}" for name, why in report.failures.items()]
    rule = ["---" if index < _NUMBERS else "---:" for index in range(len(HEADINGS))]
    lines += ["", _line(HEADINGS), _line(rule)]
    lines += [_line(row(figure, report.figures)) for figure in report.figures]
    return "\n".join(lines) + "\n"


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(text: str) -> str:
    for character in ("\\", "|", "<", "*", "_", "`"):
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
