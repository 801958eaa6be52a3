"""Deadlines that leave out what the host withholds: with real processes on a processor that they have to share."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from kata.errors import DeadlineExceeded
from kata.runtime.hypervisor import deadline
from kata.runtime.hypervisor.deadline import before_deadline, run_delay

_SPIN = "print(flush=True)\nwhile True: pass"
counts = pytest.mark.skipif(
    not os.path.exists("/proc/self/schedstat"), reason="the kernel does not count waiting (CONFIG_SCHED_INFO)"
)


@pytest.fixture
def crowded() -> Iterator[int]:
    """A process that gets a third of a processor, and wants all of it."""
    processor = min(os.sched_getaffinity(0))
    with ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen([sys.executable, "-c", _SPIN], stdout=subprocess.PIPE))
            for _ in range(3)
        ]
        for process in processes:
            stack.callback(process.kill)
            os.sched_setaffinity(process.pid, {processor})
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n", "it wants the processor from here on"
        yield processes[0].pid


async def never() -> None:
    await asyncio.sleep(3600)


async def test_the_result_and_the_error_of_the_call_are_passed_on() -> None:
    async def answer() -> int:
        return 7

    async def refuse() -> None:
        raise ValueError("no")

    assert await before_deadline("it", answer(), 10, os.getpid()) == 7
    with pytest.raises(ValueError, match="no"):
        await before_deadline("it", refuse(), 10, os.getpid())


async def test_who_waits_for_nothing_gets_no_more_time() -> None:
    with subprocess.Popen(["sleep", "60"]) as idle:
        begin = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"^it did not answer within 0 s$"):
            await before_deadline("it", never(), 0.3, idle.pid)
        assert 0.3 <= time.monotonic() - begin < 60
        idle.kill()


@counts
async def test_the_run_delay_is_left_out(crowded: int) -> None:
    before, begin = run_delay(crowded), time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"it did not answer within 1 s and a run delay of \d+ s"):
        await before_deadline("it", never(), 1.0, crowded)
    took, waited = time.monotonic() - begin, run_delay(crowded) - before
    # It never has the processor and waits for it at the same time, so both make up what passed.
    assert waited > 0.3
    assert took >= 1.0 + waited * 0.5


@counts
async def test_not_for_ever(crowded: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "MAX_RUN_DELAY_S", 0.2)
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await before_deadline("it", never(), 0.3, crowded)
    assert time.monotonic() - begin < 60


async def test_what_takes_too_long_is_cancelled_and_so_is_what_nobody_wants_any_more() -> None:
    ended: list[str] = []

    async def call(name: str) -> None:
        try:
            await never()
        finally:
            ended.append(name)

    with pytest.raises(DeadlineExceeded):
        await before_deadline("it", call("late"), 0.05, os.getpid())
    outer = asyncio.ensure_future(before_deadline("it", call("unwanted"), 60, os.getpid()))
    await asyncio.sleep(0.05)
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert ended == ["late", "unwanted"]


def test_a_process_that_is_not_there_waits_for_nothing() -> None:
    assert run_delay(0) == 0.0
    assert run_delay(1 << 30) == 0.0
