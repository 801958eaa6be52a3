"""The kernel command line of a guest, for a fast boot and a visible failure.

The agent's parameters come with the plan. Nothing weakens the guest (mitigations=off, nokaslr): measured under
emulation, it gains nothing.

Reference: the kernel's Documentation/admin-guide/kernel-parameters.rst.
"""

from __future__ import annotations

from kata.errors import InvalidArgument
from kata.runtime.hypervisor.base import VmPlan

#: COMMAND_LINE_SIZE (2048) less the final zero byte: the kernel silently truncates the rest.
MAX_LENGTH = 2047

_ALWAYS = (
    # A panic ends the VM at once: the VMM exits instead of rebooting.
    "panic=-1",
    # The self-tests of the crypto drivers are the largest avoidable cost of a boot under emulation.
    "cryptomgr.notests",
)


def kernel_command_line(plan: VmPlan) -> str:
    """The complete command line; the plan's own parameters come last and win.

    Raises:
        InvalidArgument: it is too long.
    """
    parts = [
        f"console={plan.architecture.console}",
        *_ALWAYS,
        *plan.architecture.kernel_params,
        # Pass-through: the guest's own drivers need no mapping; only what a program drives by VFIO is confined.
        *(("intel_iommu=on", "iommu=pt") if plan.iommu else ()),
        "debug" if plan.debug else "quiet",
        *plan.kernel_params,
    ]
    line = " ".join(parts)
    if len(line) > MAX_LENGTH:
        raise InvalidArgument(
            f"kernel command line is {len(line)} characters long; the maximum is {MAX_LENGTH}",
            hint="shorten kernel_params in the configuration",
        )
    return line
