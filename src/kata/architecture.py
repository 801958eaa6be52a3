"""What differs between the architectures that a guest can have: one table, and nothing else names one.

The host is x86-64. Another architecture's guest is emulated: its packages are unpacked here, its VM is one of QEMU's
`virt` machines, which is described to the kernel by a device tree. Without ACPI neither memory nor vCPUs can be
hot-plugged, and devices are plugged into PCIe root ports.

References: Debian's and OCI's names (OCI image specification, image-index.md: GOARCH); QEMU's docs/system/arm/virt.rst.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kata.errors import InvalidArgument

_OS = "linux"


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        name: Debian's and OCI's, which agree.
        machine: as `uname -m` says it, and in the names of QEMU's programs.
        elf: e_machine of its programs.
        libraries: directory of its libraries, below /usr/lib.
        loader: path of its dynamic loader.
        qemu_package: Debian's package with its QEMU.
        machine_type: QEMU's.
        machine_options: of the machine type.
        tcg_cpu: the CPU that is emulated.
        console: the serial port that is the guest's console.
        kernel_params: for the guest's kernel, besides those of all architectures.
        kernel_magic: what an uncompressed kernel has at byte 56; empty where QEMU enters an ELF kernel by its PVH note.
        bridges: whether there are PCI bridges with slots for hot-plug (ACPI); else there are just root ports.
        resizes: whether memory and vCPUs can be hot-plugged.
        generation_id: whether the machine has a device that tells the guest that it was cloned.
        iommu: whether it can have an IOMMU that the guest's drivers use.
        tells_tsc: whether the kernel is told the frequency of its clock.
        lacking: kernel modules that recipes name and its kernel does not have.
    """

    name: str
    machine: str
    elf: int
    libraries: str
    loader: str
    qemu_package: str
    machine_type: str
    machine_options: str
    tcg_cpu: str
    console: str
    kernel_params: tuple[str, ...]
    kernel_magic: bytes
    bridges: bool
    resizes: bool
    generation_id: bool
    iommu: bool
    tells_tsc: bool
    lacking: tuple[str, ...] = ()

    @property
    def qemu(self) -> Path:
        """QEMU's program for VMs."""
        return Path(f"/usr/bin/qemu-system-{self.machine}")

    @property
    def platform(self) -> str:
        """OCI's name of the platform, e.g. "linux/amd64"."""
        return f"{_OS}/{self.name}"

    @property
    def current(self) -> str:
        """Name of the link to its current guest image."""
        return "current" if self is HOST else f"current-{self.name}"

    @property
    def build_command(self) -> str:
        """What builds a guest image for it."""
        return "kata image build" if self is HOST else f"kata image build --arch {self.name}"


AMD64 = Architecture(
    name="amd64",
    machine="x86_64",
    elf=62,
    libraries="x86_64-linux-gnu",
    loader="/lib64/ld-linux-x86-64.so.2",
    qemu_package="qemu-system-x86",
    machine_type="q35",
    machine_options="",
    # All features that TCG emulates but two: with them, a kernel copies memory by `rep movsb`, which TCG runs byte by
    # byte (creating a container took 40 % longer).
    tcg_cpu="max,-erms,-fsrm",
    console="ttyS0",
    kernel_params=(
        # There is one serial port; probing for others is slow.
        "8250.nr_uarts=1",
        # The host's timers work; checking them takes time.
        "no_timer_check",
        "tsc=reliable",
        # Patching locks when CPUs come and go costs more than it gains.
        "noreplace-smp",
        # Hot-plugged memory is the agent's to take into use, as movable, so that it can be unplugged; newer kernels
        # would.
        "memhp_default_state=offline",
    ),
    kernel_magic=b"",
    bridges=True,
    resizes=True,
    generation_id=True,
    iommu=True,
    tells_tsc=True,
)

ARM64 = Architecture(
    name="arm64",
    machine="aarch64",
    elf=183,
    libraries="aarch64-linux-gnu",
    loader="/lib/ld-linux-aarch64.so.1",
    qemu_package="qemu-system-arm",
    machine_type="virt",
    # Version 3 has the message-signaled interrupts that PCI devices want, for any number of vCPUs.
    machine_options=",gic-version=3",
    # Pointer authentication by an algorithm of QEMU's own: the architecture's is most of what a program would do.
    tcg_cpu="max,pauth-impdef=on",
    console="ttyAMA0",
    kernel_params=(),
    kernel_magic=b"ARM\x64",
    bridges=False,
    resizes=False,
    generation_id=False,
    iommu=False,
    tells_tsc=False,
    lacking=("aesni-intel", "crc32c-intel"),
)

ALL = (AMD64, ARM64)
#: The architecture of hosts.
HOST = AMD64


def named(name: str) -> Architecture:
    """The architecture of a name, Debian's or the kernel's.

    Raises:
        InvalidArgument: there are no guests of it.
    """
    found = _find(name)
    if found is None:
        raise InvalidArgument(f"unknown architecture '{name[:32]}' ({', '.join(one.name for one in ALL)})")
    return found


def of_platform(platform: str) -> Architecture:
    """The architecture of a platform, such as "linux/arm64", "arm64" or "linux/arm64/v8".

    Raises:
        InvalidArgument: there are no guests for it.
    """
    found = _find(platform.removeprefix(f"{_OS}/").removesuffix("/v8"))
    if found is None:
        raise InvalidArgument(f"unknown platform '{platform[:32]}' ({', '.join(one.platform for one in ALL)})")
    return found


def _find(name: str) -> Architecture | None:
    return next((one for one in ALL if name in (one.name, one.machine)), None)


def of_machine_type(machine_type: str) -> Architecture:
    """The architecture that has a machine type of QEMU's."""
    return next(one for one in ALL if one.machine_type == machine_type)
