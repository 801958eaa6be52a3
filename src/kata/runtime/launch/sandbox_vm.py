"""The VM of a sandbox: a prepared one, if it is what the sandbox needs, else one brought up in a start slot."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from kata.runtime.agent_client.client import AgentClient
from kata.runtime.config.settings import Config
from kata.runtime.hypervisor.base import VirtualMachine, VmPlan
from kata.runtime.launch.bring_up import Progress, bring_up
from kata.runtime.launch.prelaunch import Prelaunch
from kata.runtime.launch.standby import Standby
from kata.runtime.launch.start_slots import LINGER_S, StartSlot, acquire, try_acquire
from kata.runtime.launch.timings import Timings
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import PROCESS, TREE
from kata.runtime.storage.shared_tree import SharedTree

log = logging.getLogger(__name__)

#: A VM that was begun before its sandbox was asked for, to be taken over or discarded: in standby, or prelaunched.
Prepared = Standby | Prelaunch


@dataclass(frozen=True)
class SandboxVm:
    """A VM whose agent answers.

    Attributes:
        share: the tree that it shares with the host.
        slot: kept for the first container, which takes longer to start than its VM; released soon if none comes.
    """

    vm: VirtualMachine
    agent: AgentClient
    share: SharedTree
    slot: StartSlot


async def obtain_vm(
    plan: VmPlan,
    config: Config,
    ledger: Ledger,
    timings: Timings,
    *,
    prepared: Prepared | None = None,
    progress: Progress = log.info,
) -> SandboxVm:
    """Take over the prepared VM if it is of this plan, else discard it and bring one up.

    Args:
        plan: of the VM that the sandbox needs.
        config: the sandbox's.
        ledger: the sandbox's; holds the VM from now on, also one from standby.
        timings: where the phases are recorded.
        prepared: handed over, whatever becomes of it.
        progress: called with a sentence about each step that takes seconds.

    Raises:
        VmLaunchError: the VM or its agent did not come up; nothing is left of it.
        NotFound: the VMM or the guest image is not installed.
    """
    if prepared and not prepared.suits(plan):
        log.info("the prepared VM is not what sandbox %s needs", plan.sandbox_id)
        await prepared.discard()
        prepared = None
    if isinstance(prepared, Standby):
        with timings.phase("standby"):
            return _take_over(prepared, ledger)
    slot = prepared.slot if prepared else try_acquire()
    if slot is None:
        with timings.phase("start slot"):
            slot = await acquire()
    try:
        # Before the VM: it exports the directory.
        share = SharedTree(plan.run_dir / "shared", plan.root_dir)
        vm, agent = await bring_up(plan, config, ledger, timings, progress, prepared)
    except BaseException:
        slot.release()
        raise
    slot.release_in(LINGER_S)
    return SandboxVm(vm, agent, share, slot)


def _take_over(standby: Standby, ledger: Ledger) -> SandboxVm:
    """The VM in standby becomes the sandbox's: it is on its ledger, and ends with it.

    Standby's own ledger stays locked for as long as this process lives, so that nobody takes it for dead.
    """
    ledger.hold(TREE, standby.ledger.directory)
    ledger.hold(PROCESS, standby.ledger.directory)
    return SandboxVm(standby.vm, standby.agent, standby.share, StartSlot(-1))
