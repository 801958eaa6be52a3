"""A VM in standby: restored from a template, made unique, and warmed up for its first container.

A restored guest is slow at first, because the emulator has to translate all code again. In standby that is done before
anybody waits for it. The VM belongs to the process that made it; a sandbox in that process takes it over.
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
from kata.runtime.launch.bring_up import bring_up
from kata.runtime.launch.guest_clock import settle_clock
from kata.runtime.launch.host import look_at_host
from kata.runtime.launch.start_slots import acquire
from kata.runtime.launch.timings import Timings
from kata.runtime.launch.vm_plan import plan_vm
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import PROCESS
from kata.runtime.storage.shared_tree import SharedTree

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standby:
    """A VM without a sandbox.

    Attributes:
        ledger: holds the VM, and its state directory, which is in use for as long as the VM lives.
        vm, agent: the VM, and its agent, which answers.
        share: the tree that it shares with the host.
        kind: equal for VMs that can stand in for each other.
    """

    ledger: Ledger
    vm: VirtualMachine
    agent: AgentClient
    share: SharedTree
    kind: str

    @property
    def directory(self) -> Path:
        """Its state directory."""
        return Path(self.ledger.directory)

    def suits(self, wanted: VmPlan) -> bool:
        """Whether this VM is what a sandbox needs."""
        return self.kind == kind_of(wanted)

    async def discard(self) -> None:
        """End the VM and release everything."""
        await self.vm.stop(0)
        await self.agent.close()
        for problem in self.ledger.release():
            log.warning("standby: could not release %s", problem)


def kind_of(vm_plan: VmPlan) -> str:
    """What VMs have to have in common for one to stand in for the other."""
    return key_of(description(vm_plan))


async def prepare(config: Config, ledger: Ledger) -> Standby:
    """Bring up the VM that sandboxes without limits need, and warm it up.

    Args:
        config: of the VM.
        ledger: of the VM's own state directory; released on failure.

    Raises:
        KataError: the VM did not come up, or did not warm up.
    """
    try:
        accelerator = await accel.choose_for(config.hypervisor)
        directory = Path(ledger.directory)
        host = look_at_host(config.hypervisor, accelerator.name)
        vm_plan = plan_vm(directory.name, directory, {}, config, host)
        # Before the VM: the template may be replaced meanwhile by one of another image.
        kind = kind_of(vm_plan)
        ledger.hold(PROCESS, ledger.directory)
        share = SharedTree(directory / "shared", vm_plan.root_dir)
        timings = Timings(directory, time.monotonic())
        with await acquire():
            vm, agent = await bring_up(vm_plan, config, ledger, timings, log.info)
            standby = Standby(ledger, vm, agent, share, kind)
            try:
                await agent.warm_up()
                # The sandbox that takes it sets the clock, too.
                await settle_clock(vm, agent, give_up=True)
            except BaseException:
                # A guest that may still be busy with it is of no use to a sandbox.
                await asyncio.shield(asyncio.ensure_future(standby.discard()))
                raise
        return standby
    except BaseException:
        ledger.release()
        raise
