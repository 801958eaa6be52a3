"""A report as JSON, as Markdown and as a table."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rich.console import Console

from benchmarks.figures import Figure
from benchmarks.report import Report, from_json, to_json
from benchmarks.text import HEADINGS, markdown, table
from kata.errors import InvalidArgument

REPORT = Report(
    date="2026-11-26T21:58:49+00:00",
    machine={"processor": "2 × A|B", "accelerator": "tcg (no KVM)"},
    parts={"start": "From here to there.", "memory": "How much."},
    figures=(
        Figure("start", "ctr run --rm", "kata", "s", (0.5, 0.7, 0.6)),
        Figure("start", "ctr run --rm", "runc", "s", (0.2, 0.3, 0.2)),
        Figure("memory", "idle sandbox", "kata", "MiB", (90.0, 110.0), 2),
        Figure("memory", "idle sandbox", "bare qemu", "MiB", (80.0, 80.0), 2),
    ),
    failures={"files": "status 1 of: <dd> | tee"},
    notes=("runc was slow",),
    seconds=180.0,
)


def test_json_and_back() -> None:
    assert from_json(to_json(REPORT)) == REPORT
    assert [figure["median"] for figure in json.loads(to_json(REPORT))["figures"]] == [0.6, 0.2, 100.0, 80.0]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"figures": [{}]}', '{"figures": [], "notes": [], "x": 1}'])
def test_not_a_report(text: str) -> None:
    with pytest.raises(InvalidArgument, match="not a report of the benchmark"):
        from_json(text)


def test_markdown() -> None:
    lines = markdown(REPORT).splitlines()
    assert "Measured 2026-11-26 in 3 minutes." in lines
    assert "- processor: 2 × A\\|B" in lines
    assert "- **failed**: files: status 1 of: \\<dd> \\| tee" in lines
    assert "| start | ctr run --rm | kata | 0.600 s | 0.500 … 0.700 | 3 | 3.00 |  |" in lines
    assert "| memory | idle sandbox (2) | kata | 100 MiB | 90.0 … 110 | 2 |  | 1.25 |" in lines
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(REPORT.figures)
    assert {line.count(" | ") for line in rows} == {len(HEADINGS) - 1}


def test_markdown_of_nothing() -> None:
    assert "| part |" in markdown(replace(REPORT, figures=(), failures={}, notes=()))


def test_table_says_everything_once() -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(table(REPORT))
    text = console.export_text()
    assert text.count("ctr run --rm") == text.count("start") == 1
    for word in ("0.600 s", "0.200 s", "100 MiB", "80.0 MiB", "3.00", "1.25", "bare qemu"):
        assert word in text
