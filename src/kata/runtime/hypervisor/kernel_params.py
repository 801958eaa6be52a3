"""The kernel command line of a guest: what makes it boot fast and fail loudly.

Parameters of the agent are the sandbox's, not set here. Nor is anything that weakens the guest (mitigations=off,
nokaslr): measured under emulation, it gains nothing. Reference: the kernel's admin-guide/kernel-parameters.
"""

from __future__ import annotations

from kata.errors import InvalidArgument
from kata.runtime.hypervisor.base import VmPlan

#: x86's COMMAND_LINE_SIZE (2048) less the final zero byte: the kernel cuts off the rest without a word.
MAX_LENGTH = 2047

_ALWAYS = (
    "console=ttyS0",
    # A panic ends the machine at once: QEMU runs with -no-reboot.
    "panic=-1",
    # The self-tests of the crypto drivers are the one big known cost of a boot under emulation.
    "cryptomgr.notests",
    # There is one serial port; probing for others is slow.
    "8250.nr_uarts=1",
    # Time comes from the host, whose timers need no second opinion.
    "no_timer_check",
    "tsc=reliable",
    # Patching locks in and out when CPUs come and go costs more than it gains.
    "noreplace-smp",
)


def kernel_command_line(plan: VmPlan) -> str:
    """The whole command line; the plan's own parameters come last and win.

    Raises:
        InvalidArgument: it is longer than the kernel takes.
    """
    parts = [
        *_ALWAYS,
        # Pass-through: the guest's own drivers need no mapping, and only what a program drives by VFIO is confined.
        *(("intel_iommu=on", "iommu=pt") if plan.iommu else ()),
        "debug" if plan.debug else "quiet",
        *plan.kernel_params,
    ]
    line = " ".join(parts)
    if len(line) > MAX_LENGTH:
        raise InvalidArgument(
            f"kernel command line has {len(line)} characters, the kernel takes {MAX_LENGTH}",
            hint="shorten kernel_params in the configuration",
        )
    return line
