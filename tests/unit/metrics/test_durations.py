from __future__ import annotations

import pytest

from kata.metrics.durations import BUCKETS, Durations
from kata.metrics.exposition import Family, read, write

KNOWN = {"kata_h": ("histogram", "H.")}


def filled(durations: Durations) -> dict[tuple[str, str], float]:
    family = Family("kata_h", *KNOWN["kata_h"])
    durations.fill(family)
    found, dropped = read(write([family]), KNOWN, 10_000)
    assert dropped == 0
    return {(suffix, labels): float(value) for suffix, labels, value in found["kata_h"].samples} if found else {}


def test_kata_s_buckets() -> None:
    assert BUCKETS == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def test_a_duration_is_in_every_bucket_from_its_own_on() -> None:
    durations = Durations()
    for milliseconds in (0.5, 1, 3, 600):
        durations.add("grpc.CheckRequest", milliseconds / 1000)
    found = filled(durations)
    action = 'action="grpc.CheckRequest"'
    at = {end: found["_bucket", f'{action},le="{end}"'] for end in ("1", "2", "4", "512", "+Inf")}
    assert at == {"1": 2, "2": 2, "4": 3, "512": 3, "+Inf": 4}
    assert found["_sum", action] == pytest.approx(604.5)
    assert found["_count", action] == 4


def test_a_call_that_fails_counts() -> None:
    durations = Durations()
    with pytest.raises(ValueError), durations.timed("a"):
        raise ValueError
    assert filled(durations)["_count", 'action="a"'] == 1


def test_actions_are_bounded() -> None:
    durations = Durations()
    for number in range(1000):
        durations.add(f"a{number}", 0)
    assert sum(suffix == "_count" for suffix, _ in filled(durations)) == 128


def test_nothing_yet() -> None:
    assert filled(Durations()) == {}
