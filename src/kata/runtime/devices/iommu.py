"""IOMMU groups of the host: their devices, and whether a VM can get them. A look at the host, which changes nothing.

A group is the unit that the IOMMU isolates, so a VM gets all of it. Its devices are VFIO-bound before, and stay so.

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

#: PCI class of bridges, which are in a group with the devices behind them, and stay with the host.
_BRIDGE = 0x06
_NO_IOMMU = "enable it in the firmware, and with intel_iommu=on or amd_iommu=on on the kernel command line"
#: Lines of sysfs' `resource` file that are BARs: begin, end, flags.
_BARS = 6
#: The kernel's IORESOURCE_PREFETCH and IORESOURCE_MEM_64.
_PREFETCHABLE_64 = 0x2000 | 0x100000


@dataclass(frozen=True)
class HostDevice:
    """A PCI device of the host.

    Attributes:
        address: such as "0000:3b:00.0".
        driver: the driver that it is bound to, or "".
        pci_class: its class code, 24 bits.
        window: bytes of all its prefetchable 64-bit BARs.
    """

    address: str
    driver: str
    pci_class: int
    window: int

    @property
    def is_bridge(self) -> bool:
        """Whether it is a PCI bridge."""
        return self.pci_class >> 16 == _BRIDGE

    @property
    def is_vfio_bound(self) -> bool:
        """Whether it is bound to vfio-pci."""
        return self.driver == VFIO


class Iommu:
    """The host's IOMMU.

    Args:
        root: what /sys and /dev are below; another one for tests.
    """

    def __init__(self, root: str = "") -> None:
        self.root = root
        self._sys = f"{root}/sys"
        self._dev = f"{root}/dev"

    def group_of_node(self, major: int, minor: int) -> int | None:
        """The group whose character device has this number; None if it is not VFIO's."""
        try:
            with open(f"{self._sys}/dev/char/{major}:{minor}/uevent", encoding="utf-8") as file:
                names = [line[8:].strip() for line in file if line.startswith("DEVNAME=")]
        except OSError:
            return None
        match = re.fullmatch(r"vfio/(\d+)", names[0]) if names else None
        return int(match[1]) if match else None

    def address_of(self, bus: str, name: str) -> str:
        """The PCI address of a device on `bus`: its own, or that of the virtio transport.

        Raises:
            FailedPrecondition: it is not a PCI device.
        """
        if bus == "virtio":
            name = os.path.basename(os.path.dirname(os.path.realpath(f"{self._sys}/bus/virtio/devices/{name}")))
        if bus not in ("pci", "virtio") or not pci.is_address(name):
            raise FailedPrecondition(f"device {name} on bus {bus or '(unknown)'} is not a PCI device")
        return name

    def group_of(self, address: str) -> int:
        """The group of a PCI device.

        Raises:
            FailedPrecondition: it has none.
        """
        try:
            name = os.path.basename(os.readlink(f"{self._sys}/bus/pci/devices/{address}/iommu_group"))
        except OSError:
            name = ""
        if not name.isdecimal():
            raise FailedPrecondition(f"device {address} is in no IOMMU group", hint=_NO_IOMMU)
        return int(name)

    def devices(self, group: int) -> list[HostDevice]:
        """The devices of a group, bridges included, in the order of their addresses.

        Raises:
            FailedPrecondition: this host has no active IOMMU, or a device of the group is not a PCI device.
            NotFound: there is no such group.
        """
        groups = f"{self._sys}/kernel/iommu_groups"
        if not _entries(groups):
            raise FailedPrecondition(
                "this host has no active IOMMU, so a VM cannot get any of its devices",
                hint=_NO_IOMMU,
            )
        addresses = _entries(f"{groups}/{group}/devices")
        if not addresses:
            raise NotFound(f"this host has no IOMMU group {group}")
        for address in addresses:
            if not pci.is_address(address):
                raise FailedPrecondition(f"{address} in IOMMU group {group} is not a PCI device")
        return [self._device(address) for address in addresses]

    def _device(self, address: str) -> HostDevice:
        directory = f"{self._sys}/bus/pci/devices/{address}"
        driver = driver_of(address, self.root)
        return HostDevice(
            address, driver, int(_read(f"{directory}/class"), 16), _window(_read(f"{directory}/resource"))
        )

    def assignable(self, group: int) -> list[HostDevice]:
        """The devices of a group that a VM can get, without bridges.

        Raises:
            FailedPrecondition: a device is not VFIO-bound, or the group is in use; the message names all devices.
            NotFound, FailedPrecondition: as `devices`.
        """
        devices = [device for device in self.devices(group) if not device.is_bridge]
        listed = ", ".join(f"{device.address} ({device.driver or 'no driver'})" for device in devices)
        what = f"IOMMU group {group} with {listed}"
        if not devices:
            raise FailedPrecondition(f"IOMMU group {group} has only bridges")
        unbound = [device.address for device in devices if not device.is_vfio_bound]
        if unbound:
            raise FailedPrecondition(
                f"{what} is not completely bound to {VFIO}",
                hint=f"for each of {', '.join(unbound)}: `driverctl set-override ADDRESS {VFIO}`, or write "
                f"{VFIO} to its driver_override, its address to its driver/unbind and to /sys/bus/pci/drivers_probe",
            )
        self._refuse_in_use(group, what)
        return devices

    def _refuse_in_use(self, group: int, what: str) -> None:
        # The kernel lets one process open a group at a time.
        try:
            os.close(os.open(f"{self._dev}/vfio/{group}", os.O_RDWR | os.O_CLOEXEC))
        except FileNotFoundError:
            raise FailedPrecondition(
                f"{what} has no node /dev/vfio/{group}", hint="is the module vfio loaded?"
            ) from None
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise FailedPrecondition(
                    f"{what} is in use by another VM or program",
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
    """Bytes of all prefetchable 64-bit BARs in a `resource` file of sysfs."""
    bars = [[int(word, 16) for word in line.split()] for line in resource.splitlines()[:_BARS]]
    return sum(end - begin + 1 for begin, end, flags in bars if flags & _PREFETCHABLE_64 == _PREFETCHABLE_64)
