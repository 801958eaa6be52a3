"""The devices and storages of a request, looked for in the guest before anything is made of them."""

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

#: Kata's names of today and of 2021.
_GUEST_KERNEL = ("vfio-pci-gk", "vfio-gk")
_VFIO = ("vfio-pci", "vfio")
_S390X = ("vfio-ap", "vfio-ap-cold", "blk-ccw")


@dataclass
class FoundDevices:
    """What a container's devices are in this guest.

    Attributes:
        updates: of devices that its spec has, by their path in it.
        nodes: of devices that its spec does not have.
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
        FailedPrecondition: an assigned device cannot be had in the way that is wanted.
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
            raise Unimplemented(f"device {request.id} has the type {request.type}, which only s390x has")
        else:
            raise InvalidArgument(f"device {request.id} has the unknown type {request.type!r}")
    return found


def _add(updates: dict[str, GuestDevice], request: agent_pb2.Device, device: GuestDevice) -> None:
    path = request.container_path
    if not path or path in updates:
        raise InvalidArgument(f"device {request.id} has no path of its own in the container ({path!r})")
    updates[path] = device


async def _assigned(request: agent_pb2.Device, finder: Finder, addresses: dict[str, str]) -> list[str]:
    """Directories in sysfs of the devices of a host's group, whose addresses are noted."""
    directories = []
    for host, path in vfio.parse_options(request.options).items():
        directory = await finder.pci(path)
        guest = os.path.basename(directory)
        if addresses.setdefault(host, guest) != guest or list(addresses.values()).count(guest) > 1:
            raise InvalidArgument(f"device {host} of the host is {guest} in this guest, and something else as well")
        directories.append(directory)
    return directories


def _device(node: str, final_path: str = "") -> GuestDevice:
    status = os.stat(node)
    kind = "b" if stat.S_ISBLK(status.st_mode) else "c"
    return GuestDevice(kind, os.major(status.st_rdev), os.minor(status.st_rdev), final_path)


async def find_storages(requests: Iterable[agent_pb2.Storage], finder: Finder) -> list[agent_pb2.Storage]:
    """The storages, those on a disk with its device node as source.

    Raises:
        InvalidArgument, DeadlineExceeded: as `Finder.disk`.
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
