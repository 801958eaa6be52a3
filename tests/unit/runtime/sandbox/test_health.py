"""A guest counts as hung when nothing comes from its agent, not when one answer is late."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from kata.errors import DeadlineExceeded
from kata.runtime.sandbox import health


class Vm:
    """Notes why it is killed."""

    pid = os.getpid()
    why_ended = ""

    def console_tail(self, lines: int) -> str:
        return "Panic"

    def kill(self, why: str) -> None:
        self.why_ended = why


class Agent:
    """Does not answer the first few checks; says something else, or nothing."""

    def __init__(self, *, late: int, talks: bool) -> None:
        self.heard = 0.0
        self.asked = 0
        self._late = late
        self._talks = talks

    async def check(self) -> None:
        self.asked += 1
        if self._talks:
            self.heard = asyncio.get_running_loop().time()
        if self.asked <= self._late:
            await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_ANSWER_TIMEOUT_S", 0.5)
    monkeypatch.setattr("kata.runtime.hypervisor.deadline.MAX_RUN_DELAY_S", 0)


async def hear(agent: Agent) -> None:
    vm: Any = Vm()
    talking: Any = agent
    await health._hear(vm, talking)


async def test_an_agent_that_talks_lives() -> None:
    agent = Agent(late=2, talks=True)
    await hear(agent)
    assert agent.asked == 3


async def test_one_that_says_nothing_hangs() -> None:
    agent = Agent(late=1, talks=False)
    with pytest.raises(DeadlineExceeded, match="did not answer within"):
        await hear(agent)
    assert agent.asked == 1


async def test_one_that_hangs_is_ended_and_the_reason_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def settled(*_: object) -> None:
        return

    monkeypatch.setattr(health, "settle_clock", settled)
    monkeypatch.setattr(health, "_INTERVAL_S", 0)
    vm: Any = Vm()
    silent: Any = Agent(late=1, talks=False)
    await health.watch_guest("sandbox box", vm, silent)
    assert vm.why_ended.startswith("sandbox box is unresponsive and is ended: ")
    assert vm.why_ended.endswith("its console ends with: Panic")


async def test_what_does_not_end_a_killed_container_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    vm: Any = Vm()
    health.end_guest_of(vm, "container box")
    assert vm.why_ended == (
        "container box has not ended after SIGKILL, so its VM is ended; its console ends with: Panic"
    )
    assert vm.why_ended in caplog.text
