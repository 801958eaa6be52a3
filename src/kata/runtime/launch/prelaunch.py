"""A head start: QEMU goes on from the template while the shim still loads what it serves and speaks with.

What a sandbox's machine will be follows from the bundle and the configuration, and neither asyncio nor protobuf is
needed to decide it and to run QEMU. If the sandbox then turns out to want another machine, this one was in vain.

Imports nothing that takes long to load.
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
from kata.runtime.hypervisor import accel
from kata.runtime.hypervisor.base import VmPlan
from kata.runtime.hypervisor.qemu.process import QemuProcess
from kata.runtime.hypervisor.template.template import Template, description, key_of, open_template
from kata.runtime.launch.start_slots import StartSlot, try_acquire
from kata.runtime.launch.vm_plan import AGENT_CHANNEL, as_template, plan_vm
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import PROCESS


@dataclass(frozen=True)
class Prelaunch:
    """QEMU on its way.

    Attributes:
        first_calls: what the agent's channel has carried already.
        begun: when it was started, by `time.monotonic`.
        turn: whoever takes this over ends it.
    """

    plan: VmPlan
    template: Template
    process: QemuProcess
    first_calls: FirstCalls
    begun: float
    slot: StartSlot

    def discard(self) -> None:
        """End it: the sandbox wants another machine, or none."""
        self.process.kill()
        self.template.close()
        self.slot.end()


def prelaunch(sandbox_id: str, bundle: str, config: Config, ledger: Ledger) -> Prelaunch | None:
    """Start the machine of a sandbox, if that needs no more than a template that is there.

    The caller is in a mount namespace of its own, and in the thread that the machine is to end with.

    Returns:
        None where something is missing or wrong: whoever starts the sandbox for good finds out and says what. Nor is
        there one while others start.
    """
    slot = try_acquire()
    if slot is None:
        return None
    found = _go_on(sandbox_id, bundle, config, ledger, slot)
    if found is None:
        slot.end()
    return found


def _go_on(sandbox_id: str, bundle: str, config: Config, ledger: Ledger, slot: StartSlot) -> Prelaunch | None:
    template = None
    try:
        spec = load_bundle(Path(bundle)).spec
        config = apply_annotations(config, spec.get("annotations") or {})
        accelerator = accel.known_for(config.hypervisor) if config.factory.enable_template else None
        if accelerator is None:
            return None
        plan = plan_vm(sandbox_id, Path(ledger.directory), spec, config, accelerator=accelerator.name)
        template = open_template(config.factory.template_path, key_of(description(as_template(plan))))
        ledger.hold(PROCESS, ledger.directory)
        if plan.share_dir:
            os.makedirs(plan.share_dir, mode=0o755, exist_ok=True)
        begun = time.monotonic()
        process = QemuProcess(plan, template.files)
        return Prelaunch(plan, template, process, send_first_calls(process.channels[AGENT_CHANNEL]), begun, slot)
    except (KataError, OSError):
        if template is not None:
            template.close()
        return None
