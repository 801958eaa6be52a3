"""The last call to a guest lasts as long as the guest gets on, and no longer."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from kata.errors import DeadlineExceeded, Unavailable
from kata.runtime.sandbox import flush


class Agent:
    """Flushes for a while, and answers checks or not."""

    def __init__(self, *, seconds: float, answers: bool = True, error: Exception | None = None) -> None:
        self.asked = 0
        self._seconds = seconds
        self._answers = answers
        self._error = error

    async def destroy_sandbox(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await asyncio.sleep(self._seconds)
        except TimeoutError:
            raise DeadlineExceeded("destroy sandbox: not within its time") from None
        if self._error:
            raise self._error

    async def check(self, timeout: float) -> None:
        self.asked += 1
        if not self._answers:
            raise DeadlineExceeded("health check: no answer")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush, "_ASK_INTERVAL_S", 0.05)
    monkeypatch.setattr(flush, "FLUSH_TIMEOUT_S", 20.0)


@pytest.mark.parametrize(
    ("agent", "said"),
    [
        (Agent(seconds=0.3), ""),
        (Agent(seconds=0.3, answers=False), "sandbox box: what its containers have written last may be lost: health"),
        (Agent(seconds=0, error=Unavailable("the connection is closed")), ""),
    ],
    ids=["slow", "hangs", "gone"],
)
async def test_as_long_as_the_guest_gets_on(agent: Any, said: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    await asyncio.wait_for(flush.flush_guest("sandbox box", agent), 10)
    assert said in caplog.text if said else not caplog.text


async def test_one_that_only_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(flush, "FLUSH_TIMEOUT_S", 0.3)
    agent: Any = Agent(seconds=1000)
    await asyncio.wait_for(flush.flush_guest("sandbox box", agent), 10)
    assert "may be lost: destroy sandbox" in caplog.text
    assert agent.asked
