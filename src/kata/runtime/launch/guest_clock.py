"""The guest's clock after a restore, when it is wrong by as much as that took."""

from __future__ import annotations

import asyncio
import time

from kata.runtime.agent_client.client import AgentClient
from kata.runtime.hypervisor.base import VirtualMachine
from kata.runtime.hypervisor.deadline import before_deadline

#: The clock is off by at most the time that setting it took: seconds that are good enough, and how to try for them.
_MAX_ERROR_S = 0.005
_TRIES = 50
_PAUSE_S = 0.2
#: Seconds for the agent to answer.
_ANSWER_TIMEOUT_S = 20.0


async def settle_clock(vm: VirtualMachine, agent: AgentClient) -> None:
    """Set the guest's clock again and again until one call was quick. On a busy host that may take several.

    What remains wrong is in docs/limitations.md.

    Raises:
        KataError: the agent does not answer.
    """
    for _ in range(_TRIES):
        begin = time.monotonic()
        await before_deadline("the guest's agent", agent.set_time(time.time_ns()), _ANSWER_TIMEOUT_S, vm.pid)
        if time.monotonic() - begin < _MAX_ERROR_S:
            return
        await asyncio.sleep(_PAUSE_S)
