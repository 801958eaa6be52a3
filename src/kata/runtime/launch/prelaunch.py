"""Prelaunch: QEMU restores a sandbox's VM from the template while the shim still imports what it serves with.

The plan of the VM follows from bundle and configuration, and neither asyncio nor protobuf is needed to make it and to
run QEMU. If the sandbox then turns out to need another VM, this one is discarded.

Imports nothing slow.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from kata.errors import KataError
from kata.oci.spec import load_bundle
from kata.runtime.agent_client.first_calls import FirstCalls, send_first_calls
from kata.runtime.config.annotations import apply_annotations
from kata.runtime.config.settings import Config
from kata.runtime.hypervisor import accel, factory
from kata.runtime.hypervisor.base import VmPlan, VmProcess
from kata.runtime.hypervisor.template.template import Template, description, key_of, open_template
from kata.runtime.launch import shared_fs
from kata.runtime.launch.host import look_at_host
from kata.runtime.launch.start_slots import StartSlot, try_acquire
from kata.runtime.launch.vm_plan import AGENT_CHANNEL, as_template, plan_vm
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import PROCESS


@dataclass(frozen=True)
class Prelaunch:
    """A VM that is being restored.

    Attributes:
        first_calls: what has been sent on the agent's channel already.
        begun: when QEMU was started, by `time.monotonic`.
        slot: whoever takes this over releases it.
    """

    plan: VmPlan
    template: Template
    process: VmProcess
    first_calls: FirstCalls
    begun: float
    slot: StartSlot

    def suits(self, wanted: VmPlan) -> bool:
        """Whether this VM is what a sandbox needs."""
        return self.plan == wanted

    async def discard(self) -> None:
        """End it: the sandbox needs another VM, or none."""
        self.process.kill()
        self.template.close()
        self.slot.release()


def prelaunch(sandbox_id: str, bundle: str, config: Config, ledger: Ledger) -> Prelaunch | None:
    """Start to restore the VM of a sandbox, if there is a template for it and a start slot.

    The caller is in a mount namespace of its own, and in the thread that the VM is to end with.

    Args:
        sandbox_id: whose VM.
        bundle: path of the bundle of the sandbox's first container.
        config: without the bundle's annotations.
        ledger: the sandbox's.

    Returns:
        None also where something is missing or wrong: the start of the sandbox then fails with the reason.
    """
    slot = try_acquire()
    if slot is None:
        return None
    found = _restore(sandbox_id, bundle, config, ledger, slot)
    if found is None:
        slot.release()
    return found


def _restore(sandbox_id: str, bundle: str, config: Config, ledger: Ledger, slot: StartSlot) -> Prelaunch | None:
    template = None
    try:
        spec = load_bundle(Path(bundle)).spec
        config = shared_fs.decide(apply_annotations(config, spec.get("annotations") or {}), spec)
        accelerator = accel.known_for(config.hypervisor) if config.uses_templates else None
        if accelerator is None:
            return None
        host = look_at_host(config.hypervisor, accelerator.name)
        plan = plan_vm(sandbox_id, Path(ledger.directory), spec, config, host)
        template = open_template(config.factory.template_path, key_of(description(as_template(plan))))
        ledger.hold(PROCESS, ledger.directory)
        for shared in (plan.share_dir, plan.root_dir):
            if shared:
                os.makedirs(shared, mode=0o755, exist_ok=True)
        begun = time.monotonic()
        process = factory.spawn(plan, memory=template.memory, state=template.state)
        return Prelaunch(plan, template, process, send_first_calls(process.channels[AGENT_CHANNEL]), begun, slot)
    except (KataError, OSError):
        if template is not None:
            template.close()
        return None
