"""Devices of the host's that were assigned to this machine, for the container to use in one of two ways.

    guest-kernel    this guest's own driver takes the device; the container gets the nodes that the driver makes
    vfio            the container drives the device itself: it is bound to vfio-pci, and the container gets the node
                    of its IOMMU group, whose number is this guest's and not the host's

Reference: the kernel's Documentation/driver-api/vfio.rst, Documentation/ABI/testing/sysfs-bus-pci.
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

_log = logging.getLogger(__name__)

_DRIVER = "vfio-pci"
# What a driver makes for a device of these PCI base classes, and makes after it has taken the device.
_LATE = {0x01: "block", 0x02: "net"}
_MAXIMUM_NODES = 64


def parse_options(options: Iterable[str]) -> dict[str, str]:
    """Host address to PCI path in this guest, of Kata's "0000:3b:00.0=04/00" for each device of a host's group.

    Raises:
        InvalidArgument: something else, none at all, or a device twice.
    """
    paths: dict[str, str] = {}
    for option in options:
        host, _, path = option.partition("=")
        if not pci.is_address(host) or host in paths:
            raise InvalidArgument(f"{option!r} does not say of one device where it is: expected ADDRESS=PCI-PATH")
        pci_path.parse(path)
        paths[host] = path
    if not paths:
        raise InvalidArgument("no device of the group is named")
    return paths


async def drive_by_kernel(finder: Finder, directory: str) -> list[GuestNode]:
    """Have this guest's driver take the device; the nodes that come of it, which are none for a network interface."""
    await finder.drive(directory)
    late = _LATE.get(_base_class(directory), "")
    if late and not await appears(lambda: _has(directory, late) or None, finder.timeout):
        _log.warning("no driver of this guest makes a %s device of %s", late, os.path.basename(directory))
    return list(_nodes(directory, finder.dev))


async def give_to_container(finder: Finder, directories: Sequence[str]) -> str:
    """Bind all devices of a host's group to vfio-pci; the node of the group that they are in here.

    Raises:
        FailedPrecondition: there is no IOMMU, they are in more than one group, or the driver does not take them.
        DeadlineExceeded: the group's node does not appear.
    """
    for module in (_DRIVER, "vfio_iommu_type1"):
        await finder.load(module)
    for directory in directories:
        _rebind(finder, directory)
    groups = {directory: _group(directory) for directory in directories}
    if len(set(groups.values())) != 1:
        found = ", ".join(f"{os.path.basename(directory)} in {group}" for directory, group in groups.items())
        raise FailedPrecondition(f"devices of one IOMMU group of the host are in several groups here: {found}")
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
        raise FailedPrecondition(f"{address} cannot be bound to {_DRIVER}: {error.strerror}") from error
    if _driver(directory) != _DRIVER:
        raise FailedPrecondition(f"{_DRIVER} of this guest does not take {address}")


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
            f"{os.path.basename(directory)} is in no IOMMU group: this guest has no IOMMU",
            hint="set enable_iommu = true, which vfio_mode = vfio needs",
        ) from None


def _base_class(directory: str) -> int:
    with open(f"{directory}/class", encoding="ascii") as file:
        return int(file.read(), 16) >> 16


def _has(directory: str, subsystem: str) -> bool:
    # A link in each directory says which one it is in. Names do not: an NVMe disk is no child of a directory "block".
    return any(_subsystem(parent) == subsystem for parent, _, _ in os.walk(directory))


def _subsystem(directory: str) -> str:
    return os.path.basename(os.path.realpath(f"{directory}/subsystem"))


def _nodes(directory: str, dev: str) -> Iterator[GuestNode]:
    """The nodes of a device and of what is behind it, sorted by path."""
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
    if len(found) > _MAXIMUM_NODES:
        _log.warning("of %d nodes of %s the container gets %d", len(found), directory, _MAXIMUM_NODES)
    yield from sorted(found, key=lambda node: node.path)[:_MAXIMUM_NODES]


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
