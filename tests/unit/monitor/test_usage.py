from __future__ import annotations

import json
import math
from typing import Any

import pytest

from kata.monitor.usage import History, Point, Sample


def answer(at: float, cpu: float = 0, received: float = 0, **containers: float) -> dict[str, Any]:
    return {
        "time": at,
        "vm": {"cpu_ns": cpu, "memory_bytes": 100},
        "network": {"eth0": {"rx_bytes": received, "tx_bytes": 5}, "eth1": {"rx_bytes": 1, "tx_bytes": 2}},
        "containers": {
            name: {"cpu_ns": value, "memory_bytes": 10, "memory_limit_bytes": None, "pids": 3}
            for name, value in containers.items()
        },
    }


def test_rates_between_two_samples() -> None:
    before, now = Sample.of(answer(10, 0, 0, a=0)), Sample.of(answer(14, 2e9, 4000, a=1e9, new=5e9))
    assert now.since(before) == Point(14, 50.0, 100, 20, 1000.0, 0.0)
    assert now.container_cpu(before) == {"a": 25.0}


def test_a_counter_that_begins_anew_is_no_rate() -> None:
    before, now = Sample.of(answer(10, 9e9, 9000)), Sample.of(answer(12, 1e9, 10))
    assert now.since(before)[1:] == (0, 100, 0, 0, 0)
    assert before.since(before).cpu == 0


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "[]",
        "{}",
        '{"time": "1", "vm": {"cpu_ns": 1, "memory_bytes": 1}, "network": {}, "containers": {}}',
        '{"time": 1, "vm": {"cpu_ns": -1, "memory_bytes": 1}, "network": {}, "containers": {}}',
        '{"time": 1, "vm": {"cpu_ns": NaN, "memory_bytes": 1}, "network": {}, "containers": {}}',
        '{"time": 1, "vm": {"cpu_ns": 1, "memory_bytes": true}, "network": {}, "containers": {}}',
        '{"time": 1, "vm": {"cpu_ns": 1, "memory_bytes": 1}, "network": [], "containers": {}}',
        '{"time": 1, "vm": {"cpu_ns": 1, "memory_bytes": 1}, "network": {"a": 3}, "containers": {}}',
        '{"time": 1, "vm": {"cpu_ns": 1, "memory_bytes": 1}, "network": {}, "containers": {"a": {"cpu_ns": [1]}}}',
    ],
)
def test_what_is_no_answer(text: str) -> None:
    with pytest.raises(ValueError):
        Sample.of(json.loads(text))


def test_containers_and_names_are_bounded() -> None:
    many = answer(1)
    one = {"cpu_ns": 1, "memory_bytes": 1, "memory_limit_bytes": 5, "pids": 1}
    many["containers"] = {f"{number}" + "x" * 1000: one for number in range(1000)}
    sample = Sample.of(many)
    assert len(sample.containers) == 128
    assert max(len(name) for name in sample.containers) == 128


def test_a_history_has_a_point_each_ten_seconds_and_an_hour_of_them() -> None:
    history = History(points=5)
    for second in range(0, 200, 2):
        history.add(Sample.of(answer(1000 + second, second * 1e9)))
    points = history.points()
    assert [point.time for point in points] == [1150, 1160, 1170, 1180, 1190]
    assert all(math.isclose(point.cpu, 100) for point in points)


def test_a_history_that_is_not_full() -> None:
    history = History()
    assert history.points() == []
    history.append(Point(1, 2, 3, 4, 5, 6))
    history.append(Point(5, 0, 0, 0, 0, 0))
    assert history.points() == [Point(1, 2, 3, 4, 5, 6)]
