"""What the plan of a VM needs to know of its host: looked at once, so that the plan itself is pure.

Imports nothing slow: a shim needs this before anything else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kata.runtime.config.settings import HypervisorConfig
from kata.runtime.resources.sizing import Size

_MIB = 1 << 20


@dataclass(frozen=True)
class Host:
    """One host, as far as a VM depends on it.

    Attributes:
        size: its CPUs and memory.
        accelerator: "kvm" or "tcg", as `kata.runtime.hypervisor.accel` chooses.
        kernel, initrd, image: the guest image, links resolved: the one that is current now stays this VM's, whatever is
            built meanwhile.
    """

    size: Size
    accelerator: str
    kernel: Path
    initrd: Path
    image: Path


def look_at_host(hypervisor: HypervisorConfig, accelerator: str) -> Host:
    """This host. What is missing on it is found out, and reported, by whoever uses it."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Host(
        size=Size(os.cpu_count() or 1, memory // _MIB),
        accelerator=accelerator,
        kernel=hypervisor.kernel.resolve(),
        initrd=hypervisor.initrd.resolve(),
        image=hypervisor.image.resolve(),
    )
