"""The devices and storages of a request, found in the guest before they are used."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kata.agent.devices import find, vfio
from kata.agent.devices.find import Finder
from kata.agent.devices.specupdate import GuestDevice, GuestNode
from kata.errors import InvalidArgument, Unimplemented

if TYPE_CHECKING:
    from kata.protocols import agent_pb2

#: Kata's names, current and before 3.0.
_GUEST_KERNEL = ("vfio-pci-gk", "vfio-gk")
_VFIO = ("vfio-pci", "vfio")
_S390X = ("vfio-ap", "vfio-ap-cold", "blk-ccw")


@dataclass
class FoundDevices:
    """A container's devices as this guest has them.

    Attributes:
        updates: devices of its spec, by their path in it.
        nodes: device nodes to add to its spec.
        addresses: of assigned PCI devices, host to guest.
    """

    updates: dict[str, GuestDevice] = field(default_factory=dict)
    nodes: list[GuestNode] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)


async def find_devices(requests: Iterable[agent_pb2.Device], finder: Finder) -> FoundDevices:
    """Wait for a container's devices and make them ready.

    Raises:
        InvalidArgument: an unknown type, no path, two devices for one path, or one device twice.
        DeadlineExceeded: a device does not appear.
        FailedPrecondition: an assigned device cannot be bound to the driver that is asked for.
        Unimplemented: a device of another architecture.
    """
    found = FoundDevices()
    for request in requests:
        if request.type in _GUEST_KERNEL:
            for directory in await _assigned(request, finder, found.addresses):
                found.nodes += await vfio.drive_by_kernel(finder, directory)
        elif request.type in _VFIO:
            node = await vfio.give_to_container(finder, await _assigned(request, finder, found.addresses))
            _add(found.updates, request, _device(node, final_path=f"/dev/vfio/{os.path.basename(node)}"))
        elif request.type in (*find.PLACED, *find.NAMED):
            address = request.id if request.type in find.PLACED else request.vm_path
            _add(found.updates, request, _device(await finder.disk(request.type, address)))
        elif request.type in _S390X:
            raise Unimplemented(f"device {request.id}: type {request.type} exists on s390x only")
        else:
            raise InvalidArgument(f"device {request.id}: unknown type {request.type!r}")
    return found


def _add(updates: dict[str, GuestDevice], request: agent_pb2.Device, device: GuestDevice) -> None:
    path = request.container_path
    if not path or path in updates:
        raise InvalidArgument(f"device {request.id}: its path in the container, {path!r}, is empty or taken")
    updates[path] = device


async def _assigned(request: agent_pb2.Device, finder: Finder, addresses: dict[str, str]) -> list[str]:
    """Find the devices of a host's IOMMU group, and add their addresses to `addresses`, host to guest.

    Returns:
        Their directories in sysfs.

    Raises:
        InvalidArgument: two devices of the host are one of the guest, or the reverse.
        DeadlineExceeded: a device does not appear.
    """
    directories = []
    for host, path in vfio.parse_options(request.options).items():
        directory = await finder.pci(path)
        guest = os.path.basename(directory)
        if addresses.setdefault(host, guest) != guest or list(addresses.values()).count(guest) > 1:
            raise InvalidArgument(f"devices of the host and of this guest do not match one to one: {host} is {guest}")
        directories.append(directory)
    return directories


def _device(node: str, final_path: str = "") -> GuestDevice:
    status = os.stat(node)
    kind = "b" if stat.S_ISBLK(status.st_mode) else "c"
    return GuestDevice(kind, os.major(status.st_rdev), os.minor(status.st_rdev), final_path)


async def find_storages(requests: Iterable[agent_pb2.Storage], finder: Finder) -> list[agent_pb2.Storage]:
    """Return the storages, those on a disk with its device node as source.

    Raises:
        InvalidArgument: an address is malformed.
        DeadlineExceeded: a disk does not appear.
    """
    found = []
    for request in requests:
        if request.driver in (*find.PLACED, *find.NAMED):
            located = type(request)()
            located.CopyFrom(request)
            located.source = await finder.disk(request.driver, request.source)
            found.append(located)
            continue
        if request.driver == "virtio-fs":
            await finder.file_system()
        found.append(request)
    return found
