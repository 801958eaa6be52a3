"""The table of metrics: its page is fresh, and nothing of Kata's is forgotten."""

from __future__ import annotations

from pathlib import Path

from kata.metrics.reference import markdown
from kata.metrics.table import ABSENT, ALL

PAGE = Path(__file__).parents[3] / "docs/reference/metrics.md"


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), "run: python3 -m kata.metrics > docs/reference/metrics.md"


def test_all_that_kata_documents_is_here_or_has_a_reason() -> None:
    documented = [name for name, metric in ALL.items() if metric.kata]
    assert len(documented) + len(ABSENT) == 127
    assert not set(ALL) & set(ABSENT)
    assert all(ABSENT.values())


def test_kinds_fit_names() -> None:
    assert {name for name, metric in ALL.items() if metric.kind == "histogram"} == {
        name for name in ALL if "histogram" in name
    }
    assert all(ALL[name].kind == "counter" for name in ALL if name.endswith("_total"))
