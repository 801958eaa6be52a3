"""Waiting for something to appear, with the kernel's real messages where they can be caused."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.linux.uevents import appears
from tests.support.waiting import eventually_async


async def test_what_is_there_already_is_found_at_once() -> None:
    assert await appears(lambda: "there", 0.0) == "there"


async def test_nothing_is_none_after_the_time() -> None:
    nothing: list[str] = []
    assert await appears(lambda: nothing[0] if nothing else None, 0.05) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_a_message_is_a_reason_to_look_again() -> None:
    trigger = next((path for path in Path("/sys/class/mem").glob("*/uevent") if os.access(path, os.W_OK)), None)
    if trigger is None:
        pytest.skip("needs a device whose messages can be asked for")
    answers: Iterator[str | None] = iter([None, None, None, "there"])
    waiting = asyncio.create_task(appears(lambda: next(answers), 3600))

    def asked_for() -> bool:
        trigger.write_text("change")
        return waiting.done()

    await eventually_async(asked_for, "the fourth look", poll_s=0.01)
    assert await waiting == "there"
