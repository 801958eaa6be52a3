"""The guest's clock is set until that was quick, however long the host is busy."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest

from kata.errors import DeadlineExceeded, Unavailable
from kata.runtime.launch import guest_clock


class Vm:
    pid = os.getpid()


class Agent:
    """Takes its time for the first few calls."""

    def __init__(self, *, slow: int, takes_s: float = 0.02) -> None:
        self.calls = 0
        self._slow = slow
        self._takes_s = takes_s

    async def set_time(self, nanoseconds: int) -> None:
        assert abs(time.time_ns() - nanoseconds) < 1e9
        self.calls += 1
        if self.calls <= self._slow:
            await asyncio.sleep(self._takes_s)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_clock, "_MAX_ERROR_S", 0.015)
    monkeypatch.setattr(guest_clock, "_QUICK_TRIES", 2)
    monkeypatch.setattr(guest_clock, "_PAUSE_S", 0.0)
    monkeypatch.setattr(guest_clock, "_LONG_PAUSE_S", 0.001)


async def settle(agent: Agent, **options: bool) -> None:
    vm: Any = Vm()
    asked: Any = agent
    await guest_clock.settle_clock(vm, asked, **options)


async def test_the_last_call_was_quick_after_however_many() -> None:
    agent = Agent(slow=5)
    await settle(agent)
    assert agent.calls > 5


async def test_standby_is_content_with_less() -> None:
    agent = Agent(slow=1000)
    await settle(agent, give_up=True)
    assert agent.calls == 2


async def test_no_answer_is_a_slow_one_or_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_clock, "_ANSWER_TIMEOUT_S", 0.03)
    monkeypatch.setattr("kata.runtime.hypervisor.deadline.MAX_RUN_DELAY_S", 0)
    agent = Agent(slow=3, takes_s=60)
    await settle(agent)
    assert agent.calls > 3
    with pytest.raises(DeadlineExceeded, match="did not answer within"):
        await settle(Agent(slow=1, takes_s=60), give_up=True)


async def test_a_vm_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ended(nanoseconds: int) -> None:
        raise Unavailable("the VM has ended")

    agent = Agent(slow=0)
    monkeypatch.setattr(agent, "set_time", ended)
    with pytest.raises(Unavailable, match="has ended"):
        await settle(agent)
