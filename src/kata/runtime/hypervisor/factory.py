"""The one module that knows which VMM there is. Everybody else has a `VmPlan`, a `VmProcess` or a `VirtualMachine`.

Loads neither asyncio nor what a VMM is spoken to with before a VM is created: a shim spawns the VMM's process first
(`kata.runtime.launch.prelaunch`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kata.runtime.hypervisor.base import VirtualMachine, VmPlan, VmProcess
from kata.runtime.hypervisor.qemu import identity as qemu_identity
from kata.runtime.hypervisor.qemu.process import QemuProcess


def create(plan: VmPlan, *, memory: int | None = None) -> VirtualMachine:
    """A VM that boots when it is started.

    Args:
        plan: the VM.
        memory: descriptor of a file that becomes the guest's memory, so that the VM can be saved. It stays the
            caller's, open until `start` has returned.
    """
    from kata.runtime.hypervisor.qemu.vm import QemuVm

    return QemuVm(plan, memory=memory)


def restore(plan: VmPlan, *, memory: int, state: int, process: VmProcess | None = None) -> VirtualMachine:
    """A VM that resumes from what another of the same `identity` was saved as.

    Args:
        plan: the VM.
        memory: descriptor of the saved VM's memory, which is only read.
        state: descriptor of what `VirtualMachine.save` wrote. Both stay the caller's, open until `start` has returned.
        process: the VM's process, if it was spawned already with the same plan and descriptors.

    Raises:
        TypeError: `process` was spawned by another VMM's factory.
    """
    from kata.runtime.hypervisor.qemu.vm import QemuVm

    if not isinstance(process, QemuProcess | None):
        raise TypeError(f"{process!r} is not from this factory")
    return QemuVm(plan, memory=memory, state=state, process=process)


def spawn(plan: VmPlan, *, memory: int, state: int) -> VmProcess:
    """Run the VMM's process of a VM that `restore` then takes over. It dies with the thread that calls this.

    Args:
        plan: the VM.
        memory: as for `restore`.
        state: as for `restore`.

    Raises:
        NotFound, OSError: it cannot be run; nothing is left of it.
    """
    return QemuProcess(plan, memory=memory, state=state)


def check_jail(vmm: Path, ids: range) -> None:
    """Try to make a jail for a VMM, and leave it.

    Args:
        vmm: its executable.
        ids: the user and group ids for its processes.

    Raises:
        KataError: it cannot be made.
    """
    from kata.runtime.hypervisor.qemu import jail

    jail.check(vmm, ids)


def identity(plan: VmPlan) -> dict[str, Any]:
    """What a VM has in common with every VM that can be restored from it, as JSON has it.

    Raises:
        NotFound: a file of the plan does not exist.
        InvalidArgument: the kernel command line is too long.
    """
    return qemu_identity.identity(plan)
