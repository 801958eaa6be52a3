"""What every virtual machine monitor gets and offers: a plan that is pure data, and the life of one machine.

Not here: how a monitor is started and spoken to (`kata.runtime.hypervisor.qemu`), and what runs in the guest.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kata.errors import InvalidArgument
from kata.protocols.shared_tree import TAG
from kata.runtime.hypervisor.devices import Device, VfioDevice

#: The least memory a guest gets, in MiB: below this the guest's kernel and agent were seen to die, not to say no.
MINIMUM_MEMORY_MIB = 128
#: Ports of one virtio-serial device that the machine's layout provides for.
MAXIMUM_CHANNELS = 7
#: PCIe root ports that a machine has without being asked, and those that there is room for.
ROOT_PORTS, ROOT_PORTS_MAX = 4, 18
#: How the guest gets at the shared tree; the names are those of the setting `shared_fs`.
SHARE_9P, SHARE_VIRTIO_FS = "virtio-9p", "virtio-fs"

_ACCELERATORS = ("kvm", "tcg")
#: Ends up in a process name, in file names and in QEMU's option syntax.
_SANDBOX_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_CHANNEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,30}")
_CPU_FEATURES = re.compile(r"[A-Za-z0-9_.+=,-]*")
_MAXIMUM_VCPUS = 240


@dataclass(frozen=True, kw_only=True)
class VmPlan:
    """One virtual machine, before it exists.

    Attributes:
        sandbox_id: whose it is.
        run_dir: directory for the machine's logs (`console.log`, `qemu.log`); it exists already.
        qemu: the monitor's executable.
        machine_type: QEMU's machine; the fixed device addresses are those of q35.
        accelerator: "kvm" or "tcg", as decided by `kata.runtime.hypervisor.accel`.
        cpu_model: QEMU's CPU model; "" for the accelerator's best.
        cpu_features: what to add to or take from the model, e.g. "pmu=off" or "-vmx,+avx2"; may be empty.
        vcpus: virtual CPUs at the start.
        max_vcpus: how many there may be after hot-plug; 0 for as many as at the start.
        memory_mib: guest memory in MiB.
        max_memory_mib: how much there may be after hot-plug, in MiB; 0 for as much as at the start.
        memory_slots: how many times memory may be plugged in.
        kernel: uncompressed kernel (vmlinux) or bzImage.
        initrd: initial RAM file system.
        image: read-only root image for the first disk, or None.
        kernel_params: come last on the kernel command line, so they win.
        share_dir: host directory that the guest may mount, or None.
        share_fs: SHARE_9P or SHARE_VIRTIO_FS. The latter takes guest memory that the helper shares.
        share_helper: the program that serves that directory, or None for the monitor itself, which cannot do virtio-fs.
        share_options: further arguments of that program.
        share_tag: the mount tag of that directory.
        channels: names of virtio-serial ports, in the order of their port numbers.
        iommu: whether the guest has an IOMMU.
        root_ports: PCIe root ports for devices of the host.
        mmio_window: bytes of 64-bit address space behind each PCIe root port; 0 leaves the choice to the firmware.
        devices: devices of the host that it is booted with, in its first root ports.
        seccomp: whether the monitor confines its own system calls.
        debug: a talkative guest kernel.
        environment: of the monitor's process, as (name, value) pairs; it gets no other variables.

    Raises:
        InvalidArgument: a value no machine can have.
    """

    sandbox_id: str
    run_dir: Path
    kernel: Path
    initrd: Path
    accelerator: str
    image: Path | None = None
    qemu: Path = Path("/usr/bin/qemu-system-x86_64")
    machine_type: str = "q35"
    cpu_model: str = ""
    cpu_features: str = ""
    vcpus: int = 1
    max_vcpus: int = 0
    memory_mib: int = 512
    max_memory_mib: int = 0
    memory_slots: int = 0
    kernel_params: tuple[str, ...] = ()
    share_dir: Path | None = None
    share_fs: str = SHARE_9P
    share_helper: Path | None = None
    share_options: tuple[str, ...] = ()
    share_tag: str = TAG
    channels: tuple[str, ...] = ()
    iommu: bool = False
    root_ports: int = ROOT_PORTS
    mmio_window: int = 0
    devices: tuple[VfioDevice, ...] = ()
    seccomp: bool = True
    debug: bool = False
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def shares_memory(self) -> bool:
        """Whether the guest's memory is shared with another process, and so cannot be private to this machine's."""
        return self.share_dir is not None and self.share_fs == SHARE_VIRTIO_FS

    def __post_init__(self) -> None:
        if not _SANDBOX_ID.fullmatch(self.sandbox_id):
            raise InvalidArgument(f"sandbox id {self.sandbox_id!r} is not made of letters, digits, '_', '.' and '-'")
        if self.accelerator not in _ACCELERATORS:
            raise InvalidArgument(f"accelerator {self.accelerator!r} is not one of {', '.join(_ACCELERATORS)}")
        if self.machine_type != "q35":
            raise InvalidArgument(f"machine type {self.machine_type!r} is not supported", hint="use q35")
        if self.share_fs == SHARE_VIRTIO_FS and self.share_dir and not self.share_helper:
            raise InvalidArgument("virtio-fs needs a daemon that serves it")
        if not 1 <= self.vcpus <= _MAXIMUM_VCPUS:
            raise InvalidArgument(f"{self.vcpus} virtual CPUs asked for, expected 1 to {_MAXIMUM_VCPUS}")
        if self.max_vcpus and not self.vcpus <= self.max_vcpus <= _MAXIMUM_VCPUS:
            raise InvalidArgument(
                f"at most {self.max_vcpus} virtual CPUs asked for, expected {self.vcpus} to {_MAXIMUM_VCPUS}"
            )
        if self.memory_mib < MINIMUM_MEMORY_MIB:
            raise InvalidArgument(
                f"{self.memory_mib} MiB of memory is too little for a guest, the minimum is {MINIMUM_MEMORY_MIB} MiB",
                hint="raise default_memory in the configuration",
            )
        if not ROOT_PORTS <= self.root_ports <= ROOT_PORTS_MAX:
            raise InvalidArgument(f"{self.root_ports} PCIe root ports asked for, expected 4 to {ROOT_PORTS_MAX}")
        if len(self.devices) > self.root_ports:
            raise InvalidArgument(f"{len(self.devices)} devices of the host for {self.root_ports} PCIe root ports")
        if self.mmio_window and (self.mmio_window < 0 or self.mmio_window & (self.mmio_window - 1)):
            raise InvalidArgument(f"a window of {self.mmio_window} bytes is no power of two")
        for what, text in (("cpu model", self.cpu_model), ("cpu features", self.cpu_features)):
            if not _CPU_FEATURES.fullmatch(text):
                raise InvalidArgument(f"{what} {text!r} has characters that no CPU's name has")
        if len(self.channels) > MAXIMUM_CHANNELS or len(set(self.channels)) != len(self.channels):
            raise InvalidArgument(f"channels {', '.join(self.channels)}: expected at most {MAXIMUM_CHANNELS} names")
        for name in (*self.channels, self.share_tag):
            if not _CHANNEL.fullmatch(name):
                raise InvalidArgument(f"name {name!r} is not 1 to 31 letters, digits, '_', '.' and '-'")
        for param in self.kernel_params:
            if not param.isprintable() or not param.isascii():
                raise InvalidArgument(f"kernel parameter {param!r} has characters that are not printable ASCII")


@dataclass(frozen=True)
class Resized:
    """What a machine has after a change of its size.

    Attributes:
        vcpus, memory_mib: what it has now; less than asked for where the guest has not let go.
        new_vcpus: how many of them the guest has not put to use yet.
        new_memory: whether there is such memory.
    """

    vcpus: int
    memory_mib: int
    new_vcpus: int = 0
    new_memory: bool = False


@dataclass(frozen=True)
class VmExit:
    """How a machine ended.

    Attributes:
        status: exit status of the monitor's process, negative for a signal.
        expected: whether somebody here had asked for it.
        output: the monitor's last words, safe to show.
    """

    status: int
    expected: bool
    output: str


class VirtualMachine(Protocol):
    """One machine: started once, ended once."""

    @property
    def pid(self) -> int:
        """The monitor's process id; 0 unless it runs."""

    async def start(self) -> None:
        """Run the machine. Raises NotFound, VmLaunchError; nothing stays behind then."""

    def channel(self, name: str) -> socket.socket:
        """Hand over the host end of a channel: the caller closes it. Once for each name."""

    async def wait(self) -> VmExit:
        """Wait until the machine has ended and all that it held was released."""

    async def stop(self, timeout: float = ...) -> VmExit | None:
        """End the machine, whatever the guest thinks of it. None if it never ran."""

    def kill(self) -> None:
        """End the machine at once; `wait` tells when that is done."""

    async def pause(self) -> None:
        """Stop the virtual CPUs."""

    async def resume(self) -> None:
        """Let the virtual CPUs run again."""

    def place(self, device_id: str) -> str:
        """The PCI path in the guest of a device that it was booted with."""

    async def plug(self, device: Device) -> str:
        """Plug a device into the running machine; its descriptors stay the caller's.

        Returns:
            Where the guest finds it: a PCI path such as "09/01" (Kata's), or "ID:LUN" of a SCSI disk.

        Raises:
            AlreadyExists, ResourceExhausted, FailedPrecondition, DeadlineExceeded, Unavailable: nothing is left of it.
        """

    async def unplug(self, device_id: str, timeout: float = ...) -> None:
        """Take a device back, when the guest has let go of it. A machine that has ended counts as having done so.

        Raises:
            NotFound: there is none of that id.
            DeadlineExceeded: the guest keeps it. It is given back when the guest lets go, or with the machine.
            FailedPrecondition: a part of it could not be given back.
        """

    async def grow_disk(self, device_id: str, size: int) -> None:
        """Give a disk that was plugged in a new size in bytes, and its image file if it is one.

        Raises:
            NotFound: there is no disk of that id.
            FailedPrecondition: what it lies on is smaller, or cannot grow.
        """

    async def resize(self, vcpus: int, memory_mib: int, timeout: float = ...) -> Resized:
        """Plug processors and memory in, or have the guest let go of those that were plugged in.

        Growing is all or an error; what the guest does not let go of within `timeout` seconds stays.

        Raises:
            ResourceExhausted: no slot is left for memory.
            FailedPrecondition, DeadlineExceeded, Unavailable: as for any command.
        """

    async def vcpu_threads(self) -> list[int]:
        """The monitor's threads that run the guest's processors."""

    def console_tail(self, lines: int = ...) -> str:
        """The last lines of the guest's console, safe to show."""
