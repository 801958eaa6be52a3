"""Finding hot-plugged devices in the guest: waiting for a device by its address until it can be used.

    pci         a PCI device, by PCI path                    its directory in sysfs
    interface   a network interface, by PCI path             its name
    disk        virtio-blk by PCI path, SCSI by "ID:LUN"     its node below /dev
    file_system virtio-fs                                    nothing: it is mounted by its tag
    node        mmio disks and persistent memory             the node, as soon as it exists

All of them look before they wait, so no device is missed, and wait no longer than `agent.hotplug_timeout`.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from kata.agent.devices import pci_path
from kata.errors import DeadlineExceeded, InvalidArgument
from kata.linux.uevents import appears

_SCSI_ADDRESS = re.compile(r"(\d{1,3}):(\d{1,5})")
_NODE = re.compile(r"/dev/(vd[a-z]{1,3}|pmem\d{1,3})")

#: Kata's names for disks that are identified by an address, as drivers of storages and types of devices.
PLACED = ("blk", "scsi")
#: And for those that are identified by their name in the guest.
NAMED = ("mmioblk", "nvdimm")

# Persistent memory is not on a bus that names its driver: load all, for NVDIMMs of ACPI and of virtio.
_PERSISTENT_MEMORY = ("nfit", "virtio_pmem", "nd_pmem")

Found = TypeVar("Found")


class LoadDriver(Protocol):
    """Load a kernel module by its name or alias, followed by parameters; a module that does not exist is no error."""

    def __call__(self, *module: str) -> Awaitable[None]:
        """Load `module[0]` with the parameters `module[1:]`."""


async def no_driver(*module: str) -> None:
    """Do nothing: the `LoadDriver` of an agent that is not PID 1."""


class Finder:
    """Finds devices in this guest.

    Args:
        timeout: seconds that each may take to appear.
        load: loads drivers, as the guest has no udev.
        root: prefix of /sys and /dev; not "" in tests only.
    """

    def __init__(self, timeout: float, load: LoadDriver = no_driver, root: str = "") -> None:
        self.timeout = timeout
        self.load = load
        self.sys = f"{root}/sys"
        self.dev = f"{root}/dev"

    async def pci(self, path: str) -> str:
        """The directory in sysfs of the PCI device at `path`; its name is the device's address in this guest.

        The kernel makes the directory first and the files in it later: without them a device would be taken for one
        that needs no driver (drivers/base/core.c, device_add).

        Raises:
            InvalidArgument: invalid PCI path.
            DeadlineExceeded: the device does not appear.
        """
        pci_path.parse(path)
        root = pci_path.root_bus(self.sys)

        def look() -> str | None:
            directory = pci_path.resolve(path, root)
            return directory if directory and os.path.exists(f"{directory}/modalias") else None

        return await self.wait(look, f"PCI device at {path}")

    async def interface(self, path: str) -> str:
        """The name of the network interface whose PCI device is at `path`.

        Raises:
            InvalidArgument, DeadlineExceeded: as `pci`.
        """
        directory = await self.pci(path)
        await self.drive(directory)
        # Virtio has a device of its own between the PCI device and the interface.
        patterns = (f"{directory}/net/*", f"{directory}/virtio*/net/*")
        return await self.wait(lambda: _first(patterns), f"network interface at {path}")

    async def disk(self, kind: str, address: str) -> str:
        """The node of a disk.

        Args:
            kind: one of PLACED or NAMED.
            address: a PCI path for "blk", "ID:LUN" for "scsi", the node for the others.

        Raises:
            InvalidArgument: invalid address.
            DeadlineExceeded: the disk does not appear.
        """
        if kind in NAMED:
            return await self._named(kind, address)
        what = f"disk at {kind} {address}"
        if kind == "scsi":
            return await self.wait(self._scsi(address), what)
        pci_path.parse(address)
        root = pci_path.root_bus(self.sys)

        def look() -> str | None:
            directory = pci_path.resolve(address, root)
            return self._node_of([f"{directory}/virtio*/block/*"]) if directory else None

        return await self.wait(look, what)

    def _scsi(self, address: str) -> Callable[[], str | None]:
        match = _SCSI_ADDRESS.fullmatch(address)
        if not match:
            raise InvalidArgument(f"invalid SCSI address {address!r}", hint='use "ID:LUN", such as "0:3"')
        target, unit = match.groups()
        scanned: set[str] = set()

        def look() -> str | None:
            for host in glob.glob(f"{self.sys}/class/scsi_host/host*"):
                # The controller may just have been plugged in as well.
                if host not in scanned:
                    scanned.add(host)
                    with open(f"{host}/scan", "w", encoding="ascii") as file:
                        file.write(f"0 {target} {unit}")
            return self._node_of([f"{self.sys}/bus/scsi/devices/*:0:{target}:{unit}/block/*"])

        return look

    async def _named(self, kind: str, node: str) -> str:
        match = _NODE.fullmatch(node)
        if not match or match[1].startswith("pmem") != (kind == "nvdimm"):
            raise InvalidArgument(f"invalid device node {node!r} of a disk of type {kind}")
        if kind == "nvdimm":
            for module in _PERSISTENT_MEMORY:
                await self.load(module)
        return await self.wait(lambda: self._node_of([f"{self.sys}/class/block/{match[1]}"]), f"{kind} disk {node}")

    async def file_system(self) -> None:
        """Wait until a virtio-fs device has its driver; it is mounted by its tag.

        Raises:
            DeadlineExceeded: none appears.
        """
        await self.load("virtiofs")
        driven = f"{self.sys}/bus/virtio/drivers/virtiofs/virtio*"
        await self.wait(lambda: glob.glob(driven) or None, "virtio-fs device")

    async def drive(self, directory: str) -> None:
        """Load the drivers for a PCI device and the virtio device in it, unless they have one."""
        for device in (directory, *glob.glob(f"{directory}/virtio*")):
            if alias := _driverless(device):
                await self.load(alias)

    async def wait(self, look: Callable[[], Found | None], what: str) -> Found:
        """Wait until `look` finds something in sysfs, and return that.

        Args:
            look: returns None as long as there is nothing.
            what: names it in the error.

        Raises:
            DeadlineExceeded: nothing appeared in time.
        """
        found = await appears(look, self.timeout)
        if found is None:
            raise DeadlineExceeded(
                f"no {what} appeared within {self.timeout:g} s",
                hint="a slow guest may need a longer agent.hotplug_timeout in kernel_params",
            )
        return found

    def _node_of(self, patterns: list[str]) -> str | None:
        """The device node of the device with one of these directories in sysfs, if it exists as well."""
        name = _first(patterns)
        node = f"{self.dev}/{name}"
        return node if name and os.path.exists(node) else None


def _first(patterns: list[str] | tuple[str, ...]) -> str | None:
    """The name of the first directory that matches."""
    return next((os.path.basename(path) for pattern in patterns for path in sorted(glob.glob(pattern))), None)


def _driverless(directory: str) -> str:
    """The module alias of a device without a driver; "" if it has a driver or no alias."""
    if os.path.exists(f"{directory}/driver"):
        return ""
    try:
        with open(f"{directory}/modalias", encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""
