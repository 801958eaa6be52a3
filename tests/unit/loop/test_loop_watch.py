"""A loop that is blocked is told, with where; one that rests is not."""

from __future__ import annotations

import asyncio
import time

import pytest

from kata.loop.watch import BLOCKED, LoopWatch
from tests.support.waiting import eventually_async


async def test_what_blocks_the_loop_is_named(caplog: pytest.LogCaptureFixture) -> None:
    def block() -> bool:
        time.sleep(0.5)
        return BLOCKED in caplog.text

    with LoopWatch(limit_s=0.1):
        await eventually_async(block, "a warning")
    assert f"{__file__}:" in caplog.text
    assert " block" in caplog.text


async def test_a_loop_that_rests_is_not_blocked(caplog: pytest.LogCaptureFixture) -> None:
    with LoopWatch(limit_s=0.3):
        await asyncio.sleep(1)
    assert BLOCKED not in caplog.text
