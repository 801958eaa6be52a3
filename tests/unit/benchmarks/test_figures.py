"""Figures: ratios, order, numbers, and who is measured when."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.figures import Figure, alternate, number, ordered, ratio, ratio_text, title, turns


def figure(contender: str, *values: float, name: str = "run", count: int = 0, part: str = "start") -> Figure:
    return Figure(part, name, contender, "s", values, count)


def test_median_and_spread() -> None:
    measured = figure("kata", 3.0, 1.0, 2.5)
    assert (measured.low, measured.median, measured.high) == (1.0, 2.5, 3.0)


def test_ratio_is_to_the_same_thing() -> None:
    kata = figure("kata", 6.0, count=5)
    others = [kata, figure("runc", 1.0), figure("runc", 1.5, count=1), figure("runc", 2.0, count=5)]
    assert ratio(kata, "runc", others) == 3.0
    assert ratio(kata, "bare qemu", others) is None


def test_no_ratio_to_nothing_and_to_oneself() -> None:
    assert ratio(figure("kata", 1.0), "runc", [figure("runc", 0.0)]) is None
    assert ratio_text(figure("runc", 2.0), "runc", [figure("runc", 2.0)]) == ""
    assert ratio_text(figure("kata", 1.0), "runc", [figure("runc", 3.0)]) == "0.33"


def test_ordered_brings_together_what_is_comparable() -> None:
    measured = [
        figure("kata", 1, name="total", count=1),
        figure("kata", 2, name="qemu", count=1),
        figure("kata", 3, name="total", count=20),
        figure("runc", 4, name="total", count=1),
    ]
    assert [one.values[0] for one in ordered(measured)] == [1, 4, 3, 2]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.12345, "0.123"), (1.2345, "1.23"), (12.345, "12.3"), (123.45, "123"), (8143.2, "8,143")],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_title() -> None:
    assert title(figure("kata", 1)) == "run"
    assert title(figure("kata", 1, count=20)) == "run (20)"


def test_turns_go_back_and_forth() -> None:
    assert list(turns(3, ["a", "b"])) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]


@pytest.mark.parametrize("warm_up", [True, False])
def test_alternate(warm_up: bool) -> None:
    """Each is measured so often, and what the first run of each gives does not count."""
    called: list[str] = []

    def action(name: str) -> Callable[[], float]:
        def run() -> float:
            called.append(name)
            return float(called.count(name))

        return run

    measured = alternate(2, {"a": action("a"), "b": action("b")}, warm_up=warm_up)
    assert measured == ({"a": (2, 3), "b": (2, 3)} if warm_up else {"a": (1, 2), "b": (1, 2)})
    assert called == [*("ab" if warm_up else ""), "a", "b", "b", "a"]
