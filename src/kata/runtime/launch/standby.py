"""A machine that waits for its sandbox: gone on from a template, unique, and practised in what a first container needs.

A restored guest is slow at first, because the emulator translates all code anew. In standby that has been done before
anybody waits for it. The machine belongs to the process that made it; a sandbox in that process takes it over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from kata.runtime.agent_client.client import AgentClient
from kata.runtime.config.settings import Config
from kata.runtime.hypervisor import accel
from kata.runtime.hypervisor.base import VirtualMachine, VmPlan
from kata.runtime.hypervisor.template.template import description, key_of
from kata.runtime.launch import bring_up
from kata.runtime.launch.start_slots import acquire
from kata.runtime.launch.timings import Timings
from kata.runtime.launch.vm_plan import plan_vm
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import PROCESS
from kata.runtime.storage.shared_tree import SharedTree

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standby:
    """A machine without a sandbox.

    Attributes:
        ledger: holds the machine, and its directory, which is the machine's for as long as it lives.
        vm, agent: the machine, and its agent, which answers.
        kind: equal for machines that can stand in for each other.
    """

    ledger: Ledger
    vm: VirtualMachine
    agent: AgentClient
    kind: str

    @property
    def directory(self) -> Path:
        return Path(self.ledger.directory)

    def suits(self, wanted: VmPlan) -> bool:
        """Whether this machine is what a sandbox wants."""
        return self.kind == kind_of(wanted)

    async def discard(self) -> None:
        """End the machine and give everything back."""
        await self.vm.stop(0)
        await self.agent.close()
        for problem in self.ledger.release():
            log.warning("standby could not give back: %s", problem)


def kind_of(vm_plan: VmPlan) -> str:
    """What machines have to have in common for one to stand in for the other."""
    return key_of(description(vm_plan))


async def prepare(config: Config, ledger: Ledger) -> Standby:
    """Start the machine that sandboxes without limits get, and have it practise.

    Args:
        ledger: of the machine's own directory; released on failure.

    Raises:
        KataError: the machine did not come up, or has not practised.
    """
    try:
        accelerator = await accel.choose_for(config.hypervisor)
        directory = Path(ledger.directory)
        vm_plan = plan_vm(directory.name, directory, {}, config, accelerator=accelerator.name)
        # Before the machine: the template may be made anew meanwhile, of another image.
        kind = kind_of(vm_plan)
        ledger.hold(PROCESS, ledger.directory)
        SharedTree(directory / "shared")
        timings = Timings(directory, time.monotonic())
        with await acquire():
            vm, agent = await bring_up.bring_up(vm_plan, config, ledger, timings, log.info)
            standby = Standby(ledger, vm, agent, kind)
            try:
                await agent.warm_up()
                await bring_up.settle_clock(vm, agent)
            except BaseException:
                # A guest that may still be at it is no use to a sandbox.
                await asyncio.shield(asyncio.ensure_future(standby.discard()))
                raise
        return standby
    except BaseException:
        ledger.release()
        raise
