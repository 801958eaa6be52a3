"""Bring up a VM until its agent answers: restore it from a template, or boot it.

A template that cannot be made or used costs a warning and the time of a boot, never the sandbox.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from kata.errors import DeadlineExceeded, KataError, NotFound, Unavailable, VmLaunchError
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.agent_client.first_calls import send_first_calls
from kata.runtime.config.settings import Config
from kata.runtime.hypervisor import factory
from kata.runtime.hypervisor.base import VirtualMachine, VmExit, VmPlan
from kata.runtime.hypervisor.deadline import before_deadline
from kata.runtime.hypervisor.kernel_end import CONSOLE_LINES, why_kernel_ended
from kata.runtime.hypervisor.template import template
from kata.runtime.hypervisor.template.template import Template
from kata.runtime.launch.prelaunch import Prelaunch
from kata.runtime.launch.timings import Timings
from kata.runtime.launch.vm_plan import AGENT_CHANNEL, as_template
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import TREE

log = logging.getLogger(__name__)

#: In the agent's log if its warm-up failed.
_COLD = '"warm-up: '
#: Seconds from the VMM's start to the first answer of a restored VM; 0.1 s is usual.
_RESTORE_TIMEOUT_S = 20.0
#: Seconds that the agent's warm-up may take on top of a boot.
_WARM_UP_TIMEOUT_S = 45.0
#: Seconds to wait for others who make templates, before the VM is booted without one.
_LOCK_TIMEOUT_S = 120.0
#: Seconds for the exit of a VMM whose channel has closed to be known.
_EXIT_KNOWN_S = 3.0
#: Seconds for a guest that has answered to become idle before it is saved.
_SETTLE_S = 0.3

_KILLED = "something has killed it: see whether this host, or the cgroup that it was started in, is short of memory"
_DAMAGED = "compare it with what was built: kata image check; build it again: kata image build --force"
_SLOW = "`kata check` tests this host; dial_timeout in the configuration sets the wait"

Progress = Callable[[str], None]


async def bring_up(
    plan: VmPlan,
    config: Config,
    ledger: Ledger,
    timings: Timings,
    progress: Progress,
    prelaunch: Prelaunch | None = None,
) -> tuple[VirtualMachine, AgentClient]:
    """Start the VM of `plan`, from a template if the configuration allows it.

    Args:
        plan: of the VM.
        config: how long to wait, and where templates are.
        ledger: the sandbox's.
        timings: where the phases are recorded.
        progress: called with a sentence about each step that takes seconds.
        prelaunch: of this plan; taken over.

    Raises:
        VmLaunchError: the VM or its agent did not come up; nothing is left of it.
        NotFound: the VMM or the guest image is not installed.
    """
    found = None
    if prelaunch:
        found = prelaunch.template
    elif config.uses_templates and not plan.devices:
        with timings.phase("template"):
            found = await _template(plan, config, ledger, progress)
    if found:
        with found:
            try:
                return await _restore(plan, found, timings, prelaunch)
            except VmLaunchError as error:
                if _lacks_memory(error):
                    raise  # the template is not to blame, and a boot needs more
                log.warning("template %s does not work, the VM is booted: %s", found.key, error.message)
                _remove(found, config)
    return await _boot(plan, config, timings)


def _lacks_memory(error: VmLaunchError) -> bool:
    """Whether the host has no memory for the VM: the VMM says so, or the kernel has killed it."""
    return error.exit_status == -signal.SIGKILL or os.strerror(errno.ENOMEM) in error.output


async def _template(plan: VmPlan, config: Config, ledger: Ledger, progress: Progress) -> Template | None:
    try:
        return await ensure_template(plan, config, ledger, progress)
    except NotFound:
        return None  # something is not installed: the boot fails with what, and a hint
    except KataError as error:
        log.warning("there is no template, the VM is booted: %s", error.message)
        return None


def _remove(found: Template, config: Config) -> None:
    from kata.runtime.hypervisor.template import store

    try:
        store.discard(config.factory.template_path, found.key, found.memory)
    except KataError as error:
        log.warning("%s", error.message)


async def ensure_template(plan: VmPlan, config: Config, ledger: Ledger, progress: Progress) -> Template:
    """The template for VMs of `plan`, made if there is none; the caller closes it.

    Raises:
        KataError: there is none and none could be made.
    """
    timeout = config.agent.dial_timeout + _WARM_UP_TIMEOUT_S

    async def make_ready(vm: VirtualMachine) -> None:
        agent = await AgentClient.connect(await _agent_channel(vm, "template"))
        await _first_answer(vm, agent, agent.check(), timeout, "template")
        await agent.close()
        await asyncio.sleep(_SETTLE_S)
        for line in vm.console_tail(100).splitlines():
            if _COLD in line:
                log.warning("the template works, but is not warm: %s", line)

    # Imported by the few sandboxes that make a template.
    from kata.runtime.hypervisor.template import build

    root = config.factory.template_path
    building = str(build.building(root, plan.sandbox_id))
    ledger.hold(TREE, building)
    try:
        return await build.ensure(
            as_template(plan),
            root,
            make_ready=make_ready,
            progress=progress,
            lock_timeout=_LOCK_TIMEOUT_S,
        )
    finally:
        ledger.drop(TREE, building)


async def _restore(
    plan: VmPlan, found: Template, timings: Timings, prelaunch: Prelaunch | None
) -> tuple[VirtualMachine, AgentClient]:
    process = prelaunch.process if prelaunch else None
    vm = factory.restore(plan, memory=found.memory, state=found.state, process=process)
    template.mark_used(found)
    begin = prelaunch.begun if prelaunch else time.monotonic()
    try:
        await vm.start(_RESTORE_TIMEOUT_S)
        timings.add("qemu", begin)
        with timings.phase("first answer"):
            channel = await _agent_channel(vm, "restore")
            first_calls = prelaunch.first_calls if prelaunch else send_first_calls(channel)
            agent = await AgentClient.after_first_calls(channel, first_calls)
            await _first_answer(vm, agent, agent.made_unique(first_calls), _RESTORE_TIMEOUT_S, "restore")
    except BaseException:
        await asyncio.shield(asyncio.ensure_future(vm.stop(0)))
        raise
    return vm, agent


async def _boot(plan: VmPlan, config: Config, timings: Timings) -> tuple[VirtualMachine, AgentClient]:
    vm = factory.create(plan)
    timeout = config.agent.dial_timeout
    try:
        with timings.phase("qemu"):
            await vm.start()
        with timings.phase("boot"):
            agent = await AgentClient.connect(await _agent_channel(vm, "agent"))
            await _first_answer(vm, agent, agent.check(), timeout, "agent")
    except BaseException:
        await asyncio.shield(asyncio.ensure_future(vm.stop(0)))
        raise
    return vm, agent


async def _agent_channel(vm: VirtualMachine, phase: str) -> socket.socket:
    """The channel to a VM's agent. Raises VmLaunchError if the VM has ended since it took commands."""
    try:
        return vm.channel(AGENT_CHANNEL)
    except Unavailable:
        _raise_ended(vm, phase, await vm.wait(), 0.0)


def _raise_ended(vm: VirtualMachine, phase: str, exit_: VmExit, elapsed: float) -> NoReturn:
    """Say that a VM ended before its agent had answered.

    Raises:
        VmLaunchError: always.
    """
    if reason := why_kernel_ended(vm.console_tail(CONSOLE_LINES)):
        hint = _DAMAGED
    else:
        reason, hint = "the VM ended", _KILLED if exit_.status == -signal.SIGKILL else _SLOW
    raise VmLaunchError(
        phase,
        reason,
        elapsed=elapsed,
        exit_status=exit_.status,
        output=exit_.output,
        console=vm.console_tail(),
        hint=hint,
    )


async def _first_answer(
    vm: VirtualMachine, agent: AgentClient, call: Coroutine[Any, Any, None], timeout: float, phase: str
) -> None:
    """Wait for the first call to a VM's agent.

    Args:
        vm: the VM.
        agent: its client, which is closed on failure.
        call: the call.
        timeout: seconds, not counting those in which the VM waits for a CPU.
        phase: for the error.

    Raises:
        VmLaunchError: the VM ended, or the agent did not answer in time; its client is closed.
    """
    loop = asyncio.get_running_loop()
    begin = loop.time()
    answer = asyncio.ensure_future(before_deadline("the guest's agent", call, timeout, vm.pid))
    death = asyncio.ensure_future(vm.wait())
    try:
        await asyncio.wait({answer, death}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done() and answer.exception() is None:
            return
        hangs = answer.done() and isinstance(answer.exception(), DeadlineExceeded)
        # The channel closes a moment before the exit is known: the exit says more.
        await asyncio.wait({death}, timeout=0.0 if hangs else _EXIT_KNOWN_S)
        await agent.close()
        elapsed = loop.time() - begin
        if death.done():
            _raise_ended(vm, phase, death.result(), elapsed)
        raise VmLaunchError(phase, str(answer.exception()), elapsed=elapsed, console=vm.console_tail(), hint=_SLOW)
    finally:
        for task in (answer, death):
            task.cancel()
        await asyncio.gather(answer, death, return_exceptions=True)
