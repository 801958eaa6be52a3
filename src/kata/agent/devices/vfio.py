"""Devices of the host that are assigned to this VM, for the container to use in one of two ways.

    guest-kernel    the guest's driver takes the device; the container gets the nodes that the driver makes
    vfio            the container drives the device itself: it is bound to vfio-pci, and the container gets the node
                    of its IOMMU group, whose number differs from the host's

Sources: the kernel's Documentation/driver-api/vfio.rst, Documentation/ABI/testing/sysfs-bus-pci.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence

from kata.agent.devices import pci_path
from kata.agent.devices.find import Finder
from kata.agent.devices.specupdate import GuestNode
from kata.errors import FailedPrecondition, InvalidArgument
from kata.linux import pci
from kata.linux.uevents import appears

log = logging.getLogger(__name__)

_DRIVER = "vfio-pci"
# Subsystems of what drivers make for devices of these PCI base classes, some time after they have bound.
_LATE = {0x01: "block", 0x02: "net"}
_MAX_NODES = 64


def parse_options(options: Iterable[str]) -> dict[str, str]:
    """Host address to PCI path in this guest, of Kata's "0000:3b:00.0=04/00" for each device of a host's group.

    Raises:
        InvalidArgument: an invalid option, no option, or a device twice.
    """
    paths: dict[str, str] = {}
    for option in options:
        host, _, path = option.partition("=")
        if not pci.is_address(host) or host in paths:
            raise InvalidArgument(f"invalid VFIO device option {option!r}: expected ADDRESS=PCI-PATH, each device once")
        pci_path.parse(path)
        paths[host] = path
    if not paths:
        raise InvalidArgument("IOMMU group has no devices")
    return paths


async def drive_by_kernel(finder: Finder, directory: str) -> list[GuestNode]:
    """Have the guest's driver take the device; returns the device nodes that it makes.

    A network interface has none.

    Args:
        finder: loads drivers.
        directory: the device's in sysfs.
    """
    await finder.drive(directory)
    late = _LATE.get(_base_class(directory), "")
    if late and not await appears(lambda: _has(directory, late) or None, finder.timeout):
        log.warning("no driver of the guest made a %s device of %s", late, os.path.basename(directory))
    return list(_nodes(directory, finder.dev))


async def give_to_container(finder: Finder, directories: Sequence[str]) -> str:
    """Bind all devices of one of the host's IOMMU groups to vfio-pci; returns the node of their group in the guest.

    Args:
        finder: loads drivers and waits for the node.
        directories: the devices' in sysfs.

    Raises:
        FailedPrecondition: the guest has no IOMMU, they are in several IOMMU groups, or the driver refuses them.
        DeadlineExceeded: the IOMMU group's node does not appear.
    """
    for module in (_DRIVER, "vfio_iommu_type1"):
        await finder.load(module)
    for directory in directories:
        _rebind(finder, directory)
    groups = {directory: _group(directory) for directory in directories}
    if len(set(groups.values())) != 1:
        found = ", ".join(f"{os.path.basename(directory)} in {group}" for directory, group in groups.items())
        raise FailedPrecondition(f"devices of one IOMMU group of the host are in several groups of the guest: {found}")
    group = groups[directories[0]]
    node = f"{finder.dev}/vfio/{group}"

    def look() -> str | None:
        there = os.path.exists(f"{finder.sys}/devices/virtual/vfio/{group}") and os.path.exists(node)
        return node if there else None

    return await finder.wait(look, f"node of IOMMU group {group}")


def _rebind(finder: Finder, directory: str) -> None:
    address = os.path.basename(directory)
    try:
        _write(f"{directory}/driver_override", _DRIVER)
        if _driver(directory) not in ("", _DRIVER):
            _write(f"{directory}/driver/unbind", address)
        if not _driver(directory):
            _write(f"{finder.sys}/bus/pci/drivers_probe", address)
    except OSError as error:
        raise FailedPrecondition(f"cannot bind {address} to {_DRIVER}: {error.strerror}") from error
    if _driver(directory) != _DRIVER:
        raise FailedPrecondition(f"{_DRIVER} did not bind to {address}")


def _driver(directory: str) -> str:
    try:
        return os.path.basename(os.readlink(f"{directory}/driver"))
    except FileNotFoundError:
        return ""


def _group(directory: str) -> str:
    try:
        return os.path.basename(os.readlink(f"{directory}/iommu_group"))
    except FileNotFoundError:
        raise FailedPrecondition(
            f"{os.path.basename(directory)} is in no IOMMU group: the guest has no IOMMU",
            hint="set enable_iommu = true, which vfio_mode = vfio needs",
        ) from None


def _base_class(directory: str) -> int:
    with open(f"{directory}/class", encoding="ascii") as file:
        return int(file.read(), 16) >> 16


def _has(directory: str, subsystem: str) -> bool:
    # By the `subsystem` links, not by names: an NVMe disk is not below a directory "block".
    return any(_subsystem(parent) == subsystem for parent, _, _ in os.walk(directory))


def _subsystem(directory: str) -> str:
    return os.path.basename(os.path.realpath(f"{directory}/subsystem"))


def _nodes(directory: str, dev: str) -> Iterator[GuestNode]:
    """The nodes of a device and its descendants, sorted by path."""
    found = []
    for parent, _, files in os.walk(directory):
        if "dev" in files:
            with open(f"{parent}/uevent", encoding="utf-8") as file:
                values = dict(line.rstrip("\n").split("=", 1) for line in file if "=" in line)
            if "DEVNAME" not in values or not os.path.exists(f"{dev}/{values['DEVNAME']}"):
                continue
            kind = "b" if _subsystem(parent) == "block" else "c"
            node = GuestNode(f"/dev/{values['DEVNAME']}", kind, int(values["MAJOR"]), int(values["MINOR"]))
            found.append(node)
    if len(found) > _MAX_NODES:
        log.warning("%s has %d device nodes; the container gets %d", directory, len(found), _MAX_NODES)
    yield from sorted(found, key=lambda node: node.path)[:_MAX_NODES]


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
