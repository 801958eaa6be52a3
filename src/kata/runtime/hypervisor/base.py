"""What every VMM gets and offers: a plan of a VM, which is pure data, and the life of that VM.

Not here: which VMM there is (`kata.runtime.hypervisor.factory`), how it is run and spoken to
(`kata.runtime.hypervisor.qemu`), and what runs in the guest.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kata.architecture import AMD64, Architecture
from kata.errors import InvalidArgument
from kata.runtime.config.settings import MAX_ROOT_PORTS, MAX_VCPUS
from kata.runtime.hypervisor.devices import Device, VfioDevice

#: The least memory of a guest, in MiB: with less, kernel and agent were seen to die without an error.
MIN_MEMORY_MIB = 128
#: The huge pages that a guest's memory can be in, in MiB: 2 MiB is the size that x86-64 hosts have a pool of.
HUGE_PAGE_MIB = 2
#: Channels between host and guest that a VM can have.
MAX_CHANNELS = 7
#: Empty disks that a VM can have.
MAX_EMPTY_DISKS = 16
#: PCIe root ports that a VM has at least.
MIN_ROOT_PORTS = 4
#: How the guest mounts the shared tree; the names are those of the setting `shared_fs`.
SHARE_9P, SHARE_VIRTIO_FS = "virtio-9p", "virtio-fs"

_ACCELERATORS = ("kvm", "tcg")
#: It becomes part of a process name and of file names.
_SANDBOX_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_CHANNEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,30}")
_CPU_FEATURES = re.compile(r"[A-Za-z0-9_.+=,-]*")


@dataclass(frozen=True, kw_only=True)
class VmPlan:
    """One VM, before it exists.

    Attributes:
        sandbox_id: the sandbox that it belongs to.
        run_dir: existing directory for the logs of guest console and VMM.
        vmm: the VMM's executable.
        architecture: of the guest.
        accelerator: "kvm", or "tcg" for emulation, as decided by `kata.runtime.hypervisor.accel`.
        kernel: uncompressed, as its architecture has it, or bzImage.
        initrd: initial RAM file system.
        image: root image for the first disk, which is read-only, or None.
        kernel_params: appended to the kernel command line, so they win.
        cpu_features: features to add to or remove from the guest's CPU, in the VMM's syntax; may be empty.
        vcpus: vCPUs at the start.
        max_vcpus: the most vCPUs after hot-plug; 0 for as many as at the start.
        memory_mib: guest memory in MiB.
        max_memory_mib: the most memory after hot-plug, in MiB; 0 for as much as at the start.
        memory_slots: how many times memory can be hot-plugged.
        huge_pages: whether the memory is in huge pages of the host's pool, of HUGE_PAGE_MIB. Such a VM is not saved.
        share_dir: host directory that the guest can mount by the tag of `kata.protocols.shared_tree`, or None.
        root_dir: another one, for the root of a container, by the tag for that; only over 9p.
        share_fs: SHARE_9P or SHARE_VIRTIO_FS. The latter needs guest memory that another process maps, too.
        programs: directory with the programs that serve the shared tree (`kata.osbuilder.host_programs`).
        virtiofsd: another executable that serves SHARE_VIRTIO_FS, or None.
        virtiofsd_cache: what the guest may cache of SHARE_VIRTIO_FS: "auto", "always" or "never".
        virtiofsd_args: further arguments of virtiofsd.
        channels: names of the channels between host and guest, in the order of their port numbers.
        iommu: whether the guest has an IOMMU.
        root_ports: PCIe root ports for devices of the host.
        mmio_window: bytes of 64-bit MMIO space behind each PCIe root port; 0 leaves it to the firmware.
        devices: devices of the host that are there at boot, in the first root ports.
        empty_disks: disks that are there at boot, without content: each gets a disk that is plugged later, if its size
            does not matter. For each, whether it is read-only.
        seccomp: whether the VMM runs under a system call filter.
        jail_uids: user and group ids, one of which the VMM gets in a root of its own; empty: it runs as root.
        debug: whether the guest kernel logs verbosely.
        environment: of the VMM's process, as (name, value) pairs; it gets no other variables.
        network: path of the network namespace that the VMM runs in; "" for a new one.
        template_domain: VMs of different domains share no template; "" is one as well.

    Raises:
        InvalidArgument: a value that no VM can have.
    """

    sandbox_id: str
    run_dir: Path
    vmm: Path
    accelerator: str
    kernel: Path
    initrd: Path
    image: Path | None = None
    architecture: Architecture = AMD64
    kernel_params: tuple[str, ...] = ()
    cpu_features: str = ""
    vcpus: int = 1
    max_vcpus: int = 0
    memory_mib: int = 512
    max_memory_mib: int = 0
    memory_slots: int = 0
    huge_pages: bool = False
    share_dir: Path | None = None
    root_dir: Path | None = None
    share_fs: str = SHARE_9P
    programs: Path = Path("/nonexistent")
    virtiofsd: Path | None = None
    virtiofsd_cache: str = "auto"
    virtiofsd_args: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    iommu: bool = False
    root_ports: int = MIN_ROOT_PORTS
    mmio_window: int = 0
    devices: tuple[VfioDevice, ...] = ()
    empty_disks: tuple[bool, ...] = ()
    seccomp: bool = True
    jail_uids: range = range(0)
    debug: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    network: str = ""
    template_domain: str = ""

    @property
    def shares_memory(self) -> bool:
        """Whether another process maps the guest's memory, so that it cannot be a private copy of a template's."""
        return self.share_dir is not None and self.share_fs == SHARE_VIRTIO_FS

    def __post_init__(self) -> None:
        if not _SANDBOX_ID.fullmatch(self.sandbox_id):
            raise InvalidArgument(
                f"invalid sandbox id {self.sandbox_id!r} (1 to 128 letters, digits, '_', '.' and '-')"
            )
        if self.accelerator not in _ACCELERATORS:
            raise InvalidArgument(f"invalid accelerator {self.accelerator!r} ({' or '.join(_ACCELERATORS)})")
        if not 1 <= self.vcpus <= MAX_VCPUS:
            raise InvalidArgument(f"invalid number of vCPUs {self.vcpus} (1 to {MAX_VCPUS})")
        if self.max_vcpus and not self.vcpus <= self.max_vcpus <= MAX_VCPUS:
            raise InvalidArgument(f"invalid maximum of vCPUs {self.max_vcpus} ({self.vcpus} to {MAX_VCPUS})")
        if self.memory_mib < MIN_MEMORY_MIB:
            raise InvalidArgument(
                f"{self.memory_mib} MiB is not enough memory for a guest; the minimum is {MIN_MEMORY_MIB} MiB",
                hint="raise default_memory in the configuration",
            )
        if self.huge_pages and self.memory_mib % HUGE_PAGE_MIB:
            raise InvalidArgument(f"{self.memory_mib} MiB of memory are no whole number of huge pages")
        if not MIN_ROOT_PORTS <= self.root_ports <= MAX_ROOT_PORTS:
            raise InvalidArgument(
                f"invalid number of PCIe root ports {self.root_ports} ({MIN_ROOT_PORTS} to {MAX_ROOT_PORTS})"
            )
        if len(self.devices) > self.root_ports:
            raise InvalidArgument(f"{len(self.devices)} devices of the host for {self.root_ports} PCIe root ports")
        if len(self.empty_disks) > MAX_EMPTY_DISKS:
            raise InvalidArgument(f"{len(self.empty_disks)} empty disks; the maximum is {MAX_EMPTY_DISKS}")
        if self.mmio_window and (self.mmio_window < 0 or self.mmio_window & (self.mmio_window - 1)):
            raise InvalidArgument(f"invalid MMIO window of {self.mmio_window} bytes (a power of two)")
        if not _CPU_FEATURES.fullmatch(self.cpu_features):
            raise InvalidArgument(f"invalid CPU features {self.cpu_features!r}")
        if self.iommu and not self.architecture.iommu:
            raise InvalidArgument(
                f"a VM for {self.architecture.platform} has no IOMMU",
                hint='set enable_iommu to false, and vfio_mode to "guest-kernel"',
            )
        if len(self.channels) > MAX_CHANNELS or len(set(self.channels)) != len(self.channels):
            raise InvalidArgument(f"invalid channels {', '.join(self.channels)} (at most {MAX_CHANNELS} unique names)")
        for name in self.channels:
            if not _CHANNEL.fullmatch(name):
                raise InvalidArgument(f"invalid channel name {name!r} (1 to 31 letters, digits, '_', '.' and '-')")
        for param in self.kernel_params:
            if not param.isprintable() or not param.isascii():
                raise InvalidArgument(f"invalid kernel parameter {param!r} (printable ASCII)")


@dataclass(frozen=True)
class Resized:
    """The size of a VM after a resize.

    Attributes:
        vcpus, memory_mib: what it has now, memory in MiB; more than requested where the guest has released less.
        new_vcpus: how many of the vCPUs the guest has yet to bring online.
        new_memory: whether there is memory that the guest has yet to bring online.
    """

    vcpus: int
    memory_mib: int
    new_vcpus: int = 0
    new_memory: bool = False


@dataclass(frozen=True)
class VmExit:
    """How a VM ended.

    Attributes:
        status: exit status of the VMM's process, negative for a signal.
        expected: whether it was asked to end.
        output: the last lines that the VMM printed, safe to show.
    """

    status: int
    expected: bool
    output: str

    @property
    def how(self) -> str:
        """How the process ended, in words."""
        return how_it_ended(self.status)


def how_it_ended(status: int) -> str:
    """A process's exit status in words; negative: the signal that killed it."""
    return f"has ended with status {status}" if status >= 0 else f"was killed by signal {-status}"


class VmProcess(Protocol):
    """A VMM's process that is started and not yet watched: what there is of a VM without an event loop."""

    @property
    def channels(self) -> Mapping[str, socket.socket]:
        """The host's ends of the plan's channels, by name; they stay the process's."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def kill(self) -> None:
        """End it and release everything. Only for a process that no `VirtualMachine` has taken over."""


class VirtualMachine(Protocol):
    """One VM: started once, ended once."""

    @property
    def pid(self) -> int:
        """The VMM's process id; 0 unless it runs."""

    @property
    def share_pid(self) -> int:
        """The process id of the server of the shared tree; 0 if the VMM serves it, or does not run."""

    @property
    def is_failing(self) -> bool:
        """Whether something without which it is of no use has ended, and so it will in a moment."""

    @property
    def why_ended(self) -> str:
        """Why it has ended although nobody wanted it to, with the last words of the VMM and the guest; else ""."""

    @property
    def console(self) -> Path:
        """The log of the guest's console, a `kata.runtime.hypervisor.console.RingFile`."""

    async def start(self, timeout: float = ...) -> None:
        """Run the VMM and wait until it takes commands. The guest boots or resumes meanwhile.

        The VMM dies with the thread that calls this.

        Args:
            timeout: seconds, less the run delay of the VMM's threads.

        Raises:
            FailedPrecondition: the VM was started before.
            NotFound: a file or directory of the plan does not exist.
            VmLaunchError: the VMM ended or does not answer. Nothing is left of it.
        """

    def channel(self, name: str) -> socket.socket:
        """Hand over the host's end of a channel, connected and non-blocking: the caller closes it. Once for each name.

        Raises:
            FailedPrecondition: the channel is unknown or was handed over before, or the VM was never started.
            Unavailable: the VM has ended.
        """

    async def wait(self) -> VmExit:
        """Wait until the VM has ended and everything it held is released.

        Raises:
            FailedPrecondition: the VM was never started.
        """

    async def stop(self, timeout: float = ...) -> VmExit | None:
        """End the VM without asking the guest. Idempotent.

        Args:
            timeout: seconds before the process is killed.

        Returns:
            How it ended; None if it never ran.

        Raises:
            DeadlineExceeded: the process survives SIGKILL.
        """

    def kill(self, why: str = "") -> None:
        """Kill the VMM's process; `wait` returns when everything is released. Idempotent.

        Args:
            why: what `why_ended` says from now on.
        """

    async def pause(self) -> None:
        """Stop the vCPUs. Raises Unavailable, DeadlineExceeded, FailedPrecondition."""

    async def resume(self) -> None:
        """Let the vCPUs run again. Raises Unavailable, DeadlineExceeded, FailedPrecondition."""

    async def save(self, state: int, timeout: float) -> bool:
        """Write the state of devices and vCPUs to the file `state`; the VM does not run afterwards.

        The guest's memory is complete in the file that the VM was created with.

        Args:
            state: descriptor, open for writing.
            timeout: seconds.

        Returns:
            Whether this VMM can restore VMs from memory that it may only read.

        Raises:
            FailedPrecondition: the VM's memory is no file, or a device cannot be saved.
            DeadlineExceeded, Unavailable: the VMM does not answer, or has ended.
        """

    def place(self, device_id: str) -> str:
        """The PCI path in the guest of a device that was there at boot."""

    async def plug(self, device: Device) -> str:
        """Hot-plug a device into the running VM; its descriptors stay the caller's.

        Returns:
            Where the guest finds it: a PCI path such as "09/01" (Kata's notation), or "ID:LUN" of a SCSI disk.

        Raises:
            AlreadyExists: there is a device with this id, or the guest has not released it yet.
            ResourceExhausted: all slots are in use.
            FailedPrecondition: the VMM refuses it. As after every error, nothing is left of the device.
            DeadlineExceeded, Unavailable: the VMM does not answer, or has ended.
        """

    async def unplug(self, device_id: str, timeout: float = ...) -> None:
        """Unplug a device once the guest has released it. A VM that has ended has released everything.

        Args:
            device_id: of a device that was hot-plugged.
            timeout: seconds for the guest.

        Raises:
            NotFound: there is no device with this id.
            DeadlineExceeded: the guest does not release it. It is unplugged when the guest does, or with the VM.
            FailedPrecondition: the VMM refuses, or a part of the device could not be released.
        """

    async def grow_disk(self, device_id: str, size: int) -> None:
        """Set the size in bytes of a hot-plugged disk, and of its image file if it is one.

        Raises:
            NotFound: there is no disk with this id.
            FailedPrecondition: the block device is smaller, or cannot grow.
        """

    async def resize(self, vcpus: int, memory_mib: int, timeout: float = ...) -> Resized:
        """Hot-plug vCPUs and memory, or unplug those that were hot-plugged.

        Growth is complete or an error; what the guest does not release in time stays.

        Args:
            vcpus: wanted, within the plan's limits.
            memory_mib: wanted, in MiB, within the plan's limits.
            timeout: seconds for the guest to release what it is asked to.

        Raises:
            ResourceExhausted: no memory slot is free.
            FailedPrecondition, DeadlineExceeded, Unavailable: the VMM refuses, does not answer, or has ended.
        """

    async def vcpu_threads(self) -> list[int]:
        """Ids of the VMM's threads that run the vCPUs."""

    def console_tail(self, lines: int = ...) -> str:
        """The last lines of the guest's console, safe to show."""
