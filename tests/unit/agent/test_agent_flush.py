"""A flush waits for a slow disk as long as something is written, and not for one that hangs."""

from __future__ import annotations

import itertools
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kata.agent import flush


@pytest.fixture
async def hangs() -> AsyncIterator[threading.Event]:
    """What a flush waits for until the test has ended."""
    end = threading.Event()
    yield end
    end.set()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush, "_STEP_S", 0.05)


def waits_for(event: threading.Event) -> Callable[[], None]:
    def work() -> None:
        event.wait(20)

    return work


def test_what_waits_is_dirty_or_being_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemFree:  7 kB\nDirty:    40 kB\nWriteback:   2 kB\nWritebackTmp:  9 kB\n")
    monkeypatch.setattr(flush, "_MEMINFO", str(tmp_path / "meminfo"))
    assert flush.waiting() == 42


async def test_a_slow_disk(monkeypatch: pytest.MonkeyPatch, hangs: threading.Event) -> None:
    left = iter([1000, 900, 10])

    def waiting() -> int:
        found = next(left)
        if found == 10:
            hangs.set()
        return found

    monkeypatch.setattr(flush, "waiting", waiting)
    assert await flush.flush(waits_for(hangs))
    assert next(left, None) is None


async def test_a_disk_that_hangs(
    monkeypatch: pytest.MonkeyPatch, hangs: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    left = iter([1000, 900, 900])
    monkeypatch.setattr(flush, "waiting", lambda: next(left))
    assert not await flush.flush(waits_for(hangs))
    assert "900 KiB still wait to be written, 900 KiB" in caplog.text


async def test_a_disk_that_is_too_slow(monkeypatch: pytest.MonkeyPatch, hangs: threading.Event) -> None:
    left = itertools.count(1000, -1)
    monkeypatch.setattr(flush, "waiting", lambda: next(left))
    monkeypatch.setattr(flush, "_LIMIT_S", 0.12)
    assert not await flush.flush(waits_for(hangs))
    assert 996 <= next(left) <= 998
