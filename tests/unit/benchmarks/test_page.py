"""The page: well formed, complete, self-contained, and nothing that was measured can break it."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from benchmarks.figures import Figure, number, title
from benchmarks.page import colours_of, page
from benchmarks.plot import bars, lines, nice_step
from benchmarks.report import Report

_VOID = {"meta", "br"}
#: Elements that are written as <rect …/>.
_CLOSED = {"rect", "path", "circle"}


class Page(HTMLParser):
    """Checks that elements nest, and collects what there is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _CLOSED
        self.seen.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


FIGURES = (
    Figure("start", "ctr run --rm", "kata", "s", (0.5, 0.61, 0.9)),
    Figure("start", "ctr run --rm", "runc", "s", (0.21,)),
    Figure("parallel", "failed", "kata", "failed", (0.0, 0.0), 5),
    *(
        Figure("memory", "idle sandbox", name, "MiB", (base + 100 / count, base + 101 / count), count)
        for name, base in (("kata", 30.0), ("runc", 5.0))
        for count in (1, 5, 20)
    ),
    Figure("stdout", "standard output", "kata", "MB/s", (74.0,)),
)
REPORT = Report(
    date="2026-11-26T21:58:49+00:00",
    machine={"processor": "2 × something", "accelerator": "tcg (no KVM)"},
    parts={name: f"The sentence of {name}." for name in ("start", "parallel", "memory", "stdout", "files")},
    figures=FIGURES,
    failures={"files": "no end"},
    notes=("a note",),
    seconds=61.0,
)


def test_every_figure_is_in_the_table_and_in_a_plot() -> None:
    made = Page(page(REPORT))
    for figure in FIGURES:
        for text in (title(figure), figure.contender, f"{number(figure.median)} {figure.unit}"):
            assert text in made.texts
    assert made.seen.count("tr") == 1 + len(FIGURES)
    assert made.seen.count("svg") == 3  # bars of two parts, lines of one
    assert made.seen.count("circle") == 6
    assert sum((tag, name, value) == ("rect", "class", "bar") for tag, name, value in made.attributes) == 3


def test_says_what_it_is_of() -> None:
    text = page(REPORT)
    for word in ("2026-11-26", "2 × something", "tcg (no KVM)", "The sentence of memory.", "a note", "2.90"):
        assert word in text
    assert "files failed." in text
    assert "more is better" in text
    assert "The sentence of files." not in text  # nothing was measured


def test_needs_nothing_from_elsewhere() -> None:
    text = page(REPORT)
    made = Page(text)
    assert not re.search(r"https?:|url\(|@import|//[a-z]", text)
    assert not {"script", "link", "img", "iframe"} & set(made.seen)
    ids = {value for _, name, value in made.attributes if name == "id"}
    assert sum(name == "href" for _, name, _ in made.attributes) == len(ids), "each section is linked"
    for tag, name, value in made.attributes:
        assert name != "src", tag
        if name == "href":
            assert value.removeprefix("#") in ids


def test_light_and_dark() -> None:
    assert "@media (prefers-color-scheme: dark)" in page(REPORT)


def test_markup_is_escaped() -> None:
    evil = "<script>\"'&</script>"
    told = Report(
        evil, {evil: evil}, {evil: evil}, tuple(Figure(evil, evil, evil, evil, (1.0,), n) for n in (1, 2)), {evil: evil}
    )
    for report in (told, replace(told, figures=told.figures[:1], notes=(evil,))):
        text = page(report)
        assert "script" not in Page(text).seen
        assert "<script" not in text


@pytest.mark.parametrize("values", [(0.0,), (0.0, 0.0), (1e-9,), (1e9, 2e9)])
def test_extreme_values_stay_in_the_plot(values: tuple[float, ...]) -> None:
    one = Figure("p", "x", "kata", "s", values, 1)
    for text in (bars([one], {"kata": 0}), lines([one, replace(one, count=100)], {"kata": 0})):
        width, height = map(float, re.findall(r'viewBox="0 0 (\d+) (\d+)"', text)[0])
        assert "nan" not in text
        assert "inf" not in text
        for name, limit in (("x", width), ("cx", width), ("y", height), ("cy", height)):
            for value in re.findall(rf' {name}="([^"]*)"', text):
                assert 0 <= float(value) <= limit


def test_bars_are_to_scale() -> None:
    text = bars([Figure("p", "x", name, "s", (value,)) for name, value in (("a", 2.0), ("b", 1.0))], {"a": 0, "b": 1})
    first, second = (float(width) for width in re.findall(r'class="bar".*?width="([\d.]+)"', text))
    assert first == pytest.approx(2 * second, rel=0.01)


def test_names_of_lines_do_not_cover_each_other() -> None:
    figures = [Figure("p", "x", name, "s", (1.0,), count) for name in "abc" for count in (1, 2)]
    text = lines(figures, {"a": 0, "b": 1, "c": 2})
    heights = sorted(float(y) for y in re.findall(r'class="value" x="[\d.]+" y="([\d.]+)"', text))
    assert all(upper - lower >= 15 for lower, upper in pairwise(heights))


def test_colours_go_with_the_contender() -> None:
    figures = [Figure("p", "x", f"c{index % 7}", "s", (1.0,)) for index in range(14)]
    assert colours_of(figures) == {"c0": 0, "c1": 1, "c2": 2, "c3": 3, "c4": 4, "c5": 5, "c6": 0}


@pytest.mark.parametrize(("highest", "step"), [(0, 1), (1, 0.25), (4, 1), (161, 50), (9, 2.5), (0.02, 0.005)])
def test_ticks(highest: float, step: float) -> None:
    assert nice_step(highest) == pytest.approx(step)


def test_a_run_that_measured_nothing() -> None:
    Page(page(replace(REPORT, figures=())))
