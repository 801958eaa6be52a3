"""What the plan of a VM needs to know of its host: looked at once, so that the plan itself is pure.

Imports nothing slow: a shim needs this before anything else.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from kata.runtime.config.settings import HypervisorConfig
from kata.runtime.hypervisor.base import HUGE_PAGE_MIB
from kata.runtime.launch import verity
from kata.runtime.resources.sizing import Size

_MIB = 1 << 20
_FIRST_CPU = 4096
_BOGOMIPS = re.compile(rb"^bogomips\s*: (\d+\.\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Host:
    """One host, as far as a VM depends on it.

    Attributes:
        size: its CPUs and memory.
        accelerator: "kvm" or "tcg", as `kata.runtime.hypervisor.accel` chooses.
        tsc_mhz: frequency of the CPUs' time-stamp counter; 0 if it is not known.
        kernel, initrd, image: the guest image, links resolved: the one that is current now stays this VM's, whatever is
            built meanwhile; no image if the initrd is the whole root.
        verity: what the guest's kernel checks the image with, as `kata.runtime.launch.verity` reads it; "": nothing.
        programs: the directory of the programs that serve files, links resolved.
        free_huge_pages: of HUGE_PAGE_MIB, in the host's pool, that nobody has reserved; looked at if they are wanted.
    """

    size: Size
    accelerator: str
    tsc_mhz: int
    kernel: Path
    initrd: Path
    image: Path | None
    programs: Path
    verity: str = ""
    free_huge_pages: int = 0


def tsc_mhz(cpuinfo: Path = Path("/proc/cpuinfo")) -> int:
    """The frequency of the time-stamp counter, as the kernel measured it when it booted; 0 if it does not say.

    On x86 the kernel takes the counter for its delay loop, one "bogomip" of which is half a MHz
    (arch/x86/kernel/tsc.c, lpj_fine).
    """
    try:
        with cpuinfo.open("rb", buffering=0) as file:
            first = file.read(_FIRST_CPU)  # of many: all would take long
    except OSError:
        return 0
    found = _BOGOMIPS.search(first)
    return round(float(found[1]) / 2) if found else 0


def look_at_host(hypervisor: HypervisorConfig, accelerator: str) -> Host:
    """This host. What is missing on it is found out, and reported, by whoever uses it.

    Raises:
        FailedPrecondition: the file with the image's parameters of dm-verity cannot be read.
    """
    image = hypervisor.image and hypervisor.image.resolve()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Host(
        size=Size(os.cpu_count() or 1, memory // _MIB),
        accelerator=accelerator,
        tsc_mhz=tsc_mhz(),
        kernel=hypervisor.kernel.resolve(),
        initrd=hypervisor.initrd.resolve(),
        image=image,
        programs=hypervisor.host_programs.resolve(),
        verity=(hypervisor.kernel_verity_params or verity.beside(image)) if image else "",
        free_huge_pages=free_huge_pages() if hypervisor.enable_hugepages else 0,
    )


def free_huge_pages(pool: Path = Path(f"/sys/kernel/mm/hugepages/hugepages-{HUGE_PAGE_MIB << 10}kB")) -> int:
    """How many of the pool's pages can be had; 0 if the kernel has no such pool."""
    try:
        free, reserved = (int((pool / name).read_text()) for name in ("free_hugepages", "resv_hugepages"))
    except OSError:
        return 0
    return max(0, free - reserved)
