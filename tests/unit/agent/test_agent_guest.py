"""Setting the guest's clock: told late, it must not go back."""

from __future__ import annotations

import time

import pytest

from kata.agent import guest
from kata.errors import InvalidArgument

NOW = 1_800_000_000 * 10**9


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the clock was set to; it is NOW, and stays so."""
    found: list[int] = []
    monkeypatch.setattr(time, "time_ns", lambda: NOW)
    monkeypatch.setattr(time, "clock_settime_ns", lambda _, value: found.append(value))
    return found


@pytest.mark.parametrize("difference_ms", [1, 100, 100_000_000, -300, -100_000_000])
def test_a_clock_that_is_wrong_is_set(settings: list[int], difference_ms: int) -> None:
    told = NOW + difference_ms * 10**6
    guest.set_time(told // 10**9, told % 10**9 // 1000)
    assert settings == [told]


@pytest.mark.parametrize("delay_ms", [0, 1, 20, 249])
def test_a_clock_that_a_quicker_request_has_set_stays(settings: list[int], delay_ms: int) -> None:
    told = NOW - delay_ms * 10**6
    guest.set_time(told // 10**9, told % 10**9 // 1000)
    assert settings == []


@pytest.mark.parametrize(("seconds", "microseconds"), [(-1, 0), (0, -1), (0, 1_000_000)])
def test_what_is_no_time(settings: list[int], seconds: int, microseconds: int) -> None:
    with pytest.raises(InvalidArgument, match="invalid time"):
        guest.set_time(seconds, microseconds)
    assert settings == []
