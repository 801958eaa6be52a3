"""IOMMU groups of the host: what is in one, and whether it can be given to a virtual machine. Nothing is changed here.

A group is the least that the IOMMU keeps apart, so it is given as a whole. Who gives it binds its devices to vfio-pci
before, and they stay bound to it afterwards: what is lent is given back the way it was.

References: the kernel's Documentation/driver-api/vfio.rst and Documentation/ABI/testing/sysfs-kernel-iommu_groups.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass

from kata.errors import FailedPrecondition, NotFound
from kata.linux import pci
from kata.runtime.devices.binding import VFIO, driver_of

#: PCI class of bridges, which are in a group with what is behind them, and never given away.
_BRIDGE = 0x06
_NO_IOMMU = "switch it on in the firmware, and with intel_iommu=on or amd_iommu=on on the kernel command line"
#: Lines of sysfs' `resource` file that are BARs: begin, end, flags.
_BARS = 6
#: The kernel's IORESOURCE_PREFETCH and IORESOURCE_MEM_64.
_PREFETCHABLE_64 = 0x2000 | 0x100000


@dataclass(frozen=True)
class HostDevice:
    """A PCI device of the host.

    Attributes:
        address: such as "0000:3b:00.0".
        driver: what it is bound to, or "".
        pci_class: its class code, 24 bits.
        window: bytes of its prefetchable 64-bit BARs together.
    """

    address: str
    driver: str
    pci_class: int
    window: int

    @property
    def is_bridge(self) -> bool:
        return self.pci_class >> 16 == _BRIDGE

    @property
    def lent(self) -> bool:
        """Whether it is bound to vfio-pci."""
        return self.driver == VFIO


class Iommu:
    """The host's IOMMU as the kernel shows it.

    Args:
        root: what /sys and /dev are below; another one for tests.
    """

    def __init__(self, root: str = "") -> None:
        self.root = root
        self._sys = f"{root}/sys"
        self._dev = f"{root}/dev"

    def group_of_node(self, major: int, minor: int) -> int | None:
        """The group whose character device has these numbers; None if it is no group's."""
        try:
            with open(f"{self._sys}/dev/char/{major}:{minor}/uevent", encoding="utf-8") as file:
                names = [line[8:].strip() for line in file if line.startswith("DEVNAME=")]
        except OSError:
            return None
        match = re.fullmatch(r"vfio/(\d+)", names[0]) if names else None
        return int(match[1]) if match else None

    def address_of(self, bus: str, name: str) -> str:
        """The PCI address of a device on `bus`: its own, or that of what a virtio device is in.

        Raises:
            FailedPrecondition: it is none of PCI.
        """
        if bus == "virtio":
            name = os.path.basename(os.path.dirname(os.path.realpath(f"{self._sys}/bus/virtio/devices/{name}")))
        if bus not in ("pci", "virtio") or not pci.is_address(name):
            raise FailedPrecondition(f"device {name} on bus {bus or 'of no name'} is none of PCI")
        return name

    def group_of(self, address: str) -> int:
        """The group that a PCI device is in. Raises FailedPrecondition: it is in none."""
        try:
            name = os.path.basename(os.readlink(f"{self._sys}/bus/pci/devices/{address}/iommu_group"))
        except OSError:
            name = ""
        if not name.isdecimal():
            raise FailedPrecondition(f"device {address} is in no IOMMU group", hint=_NO_IOMMU)
        return int(name)

    def devices(self, group: int) -> list[HostDevice]:
        """What a group consists of, bridges included, in the order of their addresses.

        Raises:
            FailedPrecondition: this host has no IOMMU, or something in the group is no PCI device.
            NotFound: there is no such group.
        """
        groups = f"{self._sys}/kernel/iommu_groups"
        if not _entries(groups):
            raise FailedPrecondition(
                "this host has no IOMMU that is on, so no device of it can be given to a virtual machine",
                hint=_NO_IOMMU,
            )
        addresses = _entries(f"{groups}/{group}/devices")
        if not addresses:
            raise NotFound(f"this host has no IOMMU group {group}")
        for address in addresses:
            if not pci.is_address(address):
                raise FailedPrecondition(f"{address} in IOMMU group {group} is no PCI device")
        return [self._device(address) for address in addresses]

    def _device(self, address: str) -> HostDevice:
        directory = f"{self._sys}/bus/pci/devices/{address}"
        driver = driver_of(address, self.root)
        return HostDevice(
            address, driver, int(_read(f"{directory}/class"), 16), _window(_read(f"{directory}/resource"))
        )

    def assignable(self, group: int) -> list[HostDevice]:
        """The devices of a group that is ready to be given, bridges left out.

        Raises:
            FailedPrecondition: a device is not bound to vfio-pci, or somebody has the group already; the message names
                all devices of the group.
            NotFound, FailedPrecondition: as `devices`.
        """
        devices = [device for device in self.devices(group) if not device.is_bridge]
        listed = ", ".join(f"{device.address} ({device.driver or 'no driver'})" for device in devices)
        what = f"IOMMU group {group} with {listed}"
        if not devices:
            raise FailedPrecondition(f"IOMMU group {group} has nothing but bridges")
        strange = [device.address for device in devices if not device.lent]
        if strange:
            raise FailedPrecondition(
                f"{what} is not wholly bound to {VFIO}",
                hint=f"for each of {', '.join(strange)}: `driverctl set-override ADDRESS {VFIO}`, or write "
                f"{VFIO} to its driver_override, its address to its driver/unbind and to /sys/bus/pci/drivers_probe",
            )
        self._refuse_in_use(group, what)
        return devices

    def _refuse_in_use(self, group: int, what: str) -> None:
        # The kernel lets one process at a time open a group.
        try:
            os.close(os.open(f"{self._dev}/vfio/{group}", os.O_RDWR | os.O_CLOEXEC))
        except FileNotFoundError:
            raise FailedPrecondition(
                f"{what} has no node /dev/vfio/{group}", hint="is the module vfio loaded?"
            ) from None
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise FailedPrecondition(
                    f"{what} is in use: another virtual machine or program has it",
                    hint=f"`fuser -v /dev/vfio/{group}` names it",
                ) from error
            raise FailedPrecondition(f"{what} cannot be opened: {error.strerror}") from error


def _entries(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError as error:
        raise FailedPrecondition(f"{path}: {error.strerror}") from error


def _window(resource: str) -> int:
    """Bytes of the prefetchable 64-bit BARs in a `resource` file of sysfs, which may be any size."""
    bars = [[int(word, 16) for word in line.split()] for line in resource.splitlines()[:_BARS]]
    return sum(end - begin + 1 for begin, end, flags in bars if flags & _PREFETCHABLE_64 == _PREFETCHABLE_64)
