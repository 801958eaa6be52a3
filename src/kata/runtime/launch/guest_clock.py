"""The guest's clock after a restore, when it is wrong by as much as that took."""

from __future__ import annotations

import asyncio
import itertools
import time

from kata.errors import DeadlineExceeded
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.hypervisor.base import VirtualMachine
from kata.runtime.hypervisor.deadline import before_deadline

#: The clock is off by at most the time that setting it took: seconds that are good enough, how often to try for them in
#: quick succession, seconds between two such tries, and between those after them.
_MAX_ERROR_S = 0.005
_QUICK_TRIES = 50
_PAUSE_S = 0.2
_LONG_PAUSE_S = 5.0
#: Seconds for the agent to answer.
_ANSWER_TIMEOUT_S = 20.0


async def settle_clock(vm: VirtualMachine, agent: AgentClient, *, give_up: bool = False) -> None:
    """Set the guest's clock again and again until one call was quick. On a busy host that may take several.

    What remains wrong is in docs/limitations.md.

    Args:
        vm: the VM.
        agent: of its guest.
        give_up: whether to be content, after ten seconds, with a clock that is off by as much as the last call took.

    Raises:
        DeadlineExceeded: the agent did not answer, and `give_up`.
        KataError: the VM has ended, or the agent refuses.
    """
    for tries in itertools.count(1):
        begin = time.monotonic()
        try:
            await before_deadline("the guest's agent", agent.set_time(time.time_ns()), _ANSWER_TIMEOUT_S, vm.pid)
        except DeadlineExceeded:
            if give_up:
                raise
        if time.monotonic() - begin < _MAX_ERROR_S or (give_up and tries == _QUICK_TRIES):
            return
        await asyncio.sleep(_PAUSE_S if tries < _QUICK_TRIES else _LONG_PAUSE_S)
