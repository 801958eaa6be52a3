"""Counters to rates, rates to rows of `kata stats` and lines of `kata top`."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kata.cli import stats, top
from kata.cli.template import render
from kata.cli.top import Choice
from kata.cli.usage import Counters, Sample, View, parse_sample, percent, rates, size


def answer(time: float, **changes: Any) -> bytes:
    container = {
        "cpu_ns": 10**9,
        "cpu_throttled_ns": 0,
        "memory_bytes": 50 << 20,
        "memory_limit_bytes": 100 << 20,
        "pids": 3,
        "read_bytes": 1000,
        "written_bytes": 2000,
    }
    return json.dumps(
        {
            "time": time,
            "containers": {"c1": {**container, **changes}},
            "network": {"eth0": {"rx_bytes": 10, "tx_bytes": 20}, "eth1": {"rx_bytes": 1, "tx_bytes": 2}},
            "vm": {"cpu_ns": 5 * 10**9, "memory_bytes": 200 << 20, "vcpus": 2, "memory_size_bytes": 512 << 20},
        }
    ).encode()


def view(name: str = "box", cpu_s: float = 1.0, **told: Any) -> View:
    before = parse_sample(answer(100.0))
    after = parse_sample(answer(102.0, cpu_ns=round(10**9 * (1 + cpu_s)), written_bytes=6000))
    vm = replace(after.vm, cpu_ns=before.vm.cpu_ns + round(2 * cpu_s * 10**9), written=6000)
    containers = [{"id": "c1", "name": "nginx", "state": "running"}]
    told = {"id": name, "state": "running", "pod": None, "started": 40.0, "containers": containers, **told}
    return View(told, before, Sample(102.0, vm, after.containers))


def test_a_sample() -> None:
    sample = parse_sample(answer(5.0))
    assert sample.vm == Counters(5 * 10**9, 200 << 20, 512 << 20, 3, 11, 22, 1000, 2000)
    assert sample.containers["c1"].limit == 100 << 20


@pytest.mark.parametrize("value", [None, "9", -1, 1 << 70, True, [], {}, float("inf"), float("nan")])
def test_what_is_no_number_is_nothing(value: object) -> None:
    sample = parse_sample(answer(5.0, cpu_ns=value, memory_limit_bytes=value))
    assert (sample.containers["c1"].cpu_ns, sample.containers["c1"].limit) == (0, None)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_answer_is_a_sample_or_an_error(document: object) -> None:
    try:
        parse_sample(
            json.dumps({"containers": document, "network": document, "vm": document, "time": document}).encode()
        )
        parse_sample(json.dumps(document).encode())
    except ValueError:
        pass


def test_deeply_nested_answers_are_errors() -> None:
    with pytest.raises(ValueError, match="nested"):
        parse_sample(b"[" * 100_000)


def test_rates() -> None:
    before, after = Counters(cpu_ns=10**9, received=100), Counters(cpu_ns=4 * 10**9, received=50)
    assert rates(before, after, 2.0).cpu == 1.5
    assert rates(before, after, 2.0).received == 0, "it has begun anew"
    assert rates(None, after, 2.0).cpu == rates(before, after, 0.0).cpu == rates(before, after, -1.0).cpu == 0


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "0.977KiB"),
        (1024, "1KiB"),
        (1536, "1.5KiB"),
        (200 << 20, "200MiB"),
        (2**80, "1048576EiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
    assert percent(1.234) == "123.4%"


def test_rows_of_stats() -> None:
    text = render(None, list(stats.rows([view(), View({"id": "dead", "state": "dead"})])), stats.COLUMNS)
    assert text.splitlines() == [
        "SANDBOX  CONTAINER  NAME   CPU %   MEM USAGE / LIMIT  MEM %  NET I/O    BLOCK I/O           PIDS",
        "box      VM         -      100.0%  200MiB / 512MiB    39.1%  11B / 22B  0.977KiB / 5.86KiB  3",
        "box      c1         nginx  50.0%   50MiB / 100MiB     50.0%  -          0.977KiB / 5.86KiB  3",
        "dead     VM         -      -       -                  -      -          -                   -",
    ]


def test_stats_as_numbers() -> None:
    (found,) = stats.as_json([view()])
    assert found["vm"]["cpu_percent"] == 100.0
    assert found["vm"]["rx_bytes"] == 11
    assert found["containers"]["c1"] == {
        "cpu_percent": 50.0,
        "memory_bytes": 50 << 20,
        "memory_limit_bytes": 100 << 20,
        "pids": 3,
        "read_bytes": 1000,
        "written_bytes": 6000,
    }
    assert stats.as_json([View({"id": "dead"})]) == [
        {"sandbox": "dead", "namespace": "", "time": None, "vm": {}, "containers": {}}
    ]


def drawn(views: list[View], choice: Choice, columns: int = 120, rows: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=columns, height=rows, color_system=None)
    console.print(top.screen(views, choice, rows, columns, 100.0))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]


def test_the_picture() -> None:
    views = [view("slow", 0.1), view("busy", 1.5, pod={"namespace": "shop", "name": "web"})]
    picture = drawn(views, Choice())
    assert "2 sandboxes, 2 running  CPU 160.0%  memory 400MiB" in picture[0]
    order = [line.split()[0] for line in picture if line.split()[:1] and line.split()[0] in ("slow", "busy")]
    assert order == ["busy", "slow"]
    assert "shop/web" in "".join(picture)
    with_containers = drawn(views, Choice(with_containers=True, sort="s"))
    assert [line for line in with_containers if line.startswith("   nginx ")]


@pytest.mark.parametrize(("columns", "rows"), [(40, 3), (50, 8), (200, 50)])
def test_any_size_of_terminal(columns: int, rows: int) -> None:
    picture = drawn([view(f"box{n}") for n in range(100)], Choice(), columns, rows)
    assert all(len(line) <= columns for line in picture)
    assert sum(line.startswith(" box") for line in picture) == max(1, rows - 6)
    assert rows < 8 or len(picture) <= rows


@pytest.mark.parametrize(
    ("columns", "there", "missing"), [(30, "CPU %", "STATE"), (60, "STATE", "AGE"), (200, "AGE", "…")]
)
def test_what_matters_most_is_there(columns: int, there: str, missing: str) -> None:
    picture = "\n".join(drawn([view("box-0123")], Choice(), columns))
    assert there in picture
    assert "box-0123 " in picture
    assert missing not in picture


def test_markup_and_control_characters_are_text() -> None:
    picture = "\n".join(drawn([view("box", pod={"namespace": "[red]", "name": "\x1b[2J[/]"})], Choice()))
    assert "[red]/\\x1b[2J[/]" in picture


@pytest.mark.parametrize(
    ("typed", "choice"),
    [
        ("m", Choice(sort="m")),
        ("rr", Choice()),
        ("rt", Choice(is_reverse=True, with_containers=True)),
        ("q", Choice(ends=True)),
        ("\x03", Choice(ends=True)),
        ("\x1b[B\x1b[B\x1b[A", Choice(first=1)),
        ("\x1b[6~", Choice(first=10)),
        ("\x1b[6~" * 30, Choice(first=90)),
        ("k", Choice()),
        ("\x1b[15~\x1bOPz\x1b", Choice()),
    ],
)
def test_keys(typed: str, choice: Choice) -> None:
    found = Choice()
    for key in top.keys(typed):
        found = found.after(key, 100, 10)
    assert found == choice


@given(st.text(max_size=30))
def test_any_keys_end(typed: str) -> None:
    assert len(list(top.keys(typed))) <= len(typed)
