"""The health of a running guest: its agent is asked at intervals, and a guest that hangs is ended."""

from __future__ import annotations

import asyncio
import logging

from kata.errors import DeadlineExceeded, KataError, Unavailable
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.hypervisor.base import VirtualMachine
from kata.runtime.hypervisor.deadline import before_deadline
from kata.runtime.launch.guest_clock import settle_clock

log = logging.getLogger(__name__)

#: Seconds between two checks, and seconds for the agent to answer before the guest counts as hung.
_INTERVAL_S = 5.0
_ANSWER_TIMEOUT_S = 30.0
_CONSOLE_LINES = 3


async def watch_guest(what: str, vm: VirtualMachine, agent: AgentClient) -> None:
    """Watch until the VM ends, or end it: every call that waits for it then fails. Meanwhile, set the guest's clock.

    Args:
        what: names the sandbox in the log.
        vm: the sandbox's VM.
        agent: of its guest.
    """
    settling = asyncio.create_task(_settle(vm, agent))
    try:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            await _hear(vm, agent)
    except Unavailable:
        pass  # the VM has ended
    except KataError as error:
        console = vm.console_tail(_CONSOLE_LINES)
        why = f"{what} is unresponsive and is ended: {error}; its console ends with: {console}"
        log.error("%s", why)
        vm.kill(why)
    finally:
        settling.cancel()


def end_guest_of(vm: VirtualMachine, container: str) -> None:
    """A guest has not ended a container: its kernel hangs, or it is hostile. End its VM, which ends everything.

    Args:
        vm: the sandbox's VM.
        container: names the container in the log.
    """
    console = vm.console_tail(_CONSOLE_LINES)
    why = f"{container} has not ended after SIGKILL, so its VM is ended; its console ends with: {console}"
    log.error("%s", why)
    vm.kill(why)


async def _settle(vm: VirtualMachine, agent: AgentClient) -> None:
    try:
        await settle_clock(vm, agent)
    except KataError as error:
        log.info("the guest's clock: %s", error)


async def _hear(vm: VirtualMachine, agent: AgentClient) -> None:
    """Wait until the agent has answered a check.

    One that says anything else meanwhile lives: the answer may be behind a lot of output, or the agent busy.

    Raises:
        DeadlineExceeded: nothing came from it in time.
        KataError: it does not serve, or its VM has ended.
    """
    while True:
        asked = asyncio.get_running_loop().time()
        try:
            await before_deadline("the guest's agent", agent.check(), _ANSWER_TIMEOUT_S, vm.pid)
            return
        except DeadlineExceeded as error:
            if agent.heard < asked:
                raise
            log.info("%s, but it lives", error)
