"""The QMP commands that plug a device, and those that undo them: functions of its description.

References: qemu-qmp-ref(7): add-fd, getfd, blockdev-add, netdev_add, device_add.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from kata.runtime.hypervisor.devices import BlockDevice, NetworkDevice, VfioDevice
from kata.runtime.hypervisor.qemu.slots import Slot

SCSI_CONTROLLER = "scsi0"
#: Kata's numbering of disks on one controller: 256 logical units on each of 256 targets.
_SCSI_UNITS = 256
#: A full disk of the host is an error for the guest. By default QEMU stops the VM until somebody makes room.
_ON_FULL: Mapping[str, object] = {"werror": "report"}


@dataclass(frozen=True)
class Command:
    """One QMP command; the descriptor `fd` is passed with it."""

    name: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    fd: int | None = None


@dataclass(frozen=True)
class Step:
    """A command and its inverse.

    Attributes:
        do: the command.
        undo: its inverse.
        passing: the next steps take over what this one made, so it is undone only if one of them fails.
    """

    do: Command
    undo: Command
    passing: bool = False


@dataclass(frozen=True)
class FileSystemDevice:
    """The shared tree over virtio-fs, served by a daemon that QEMU is connected to.

    Attributes:
        id: unique in the VM.
        chardev: QEMU's name of the connection.
        tag: the guest's mount tag.
    """

    id: str
    chardev: str
    tag: str


def disk(device: BlockDevice, number: int) -> list[Step]:
    """The backend of a disk. Looks at what is open: a block device or a file.

    Args:
        device: the disk.
        number: unique in the VM; it names the set of descriptors and the block node.
    """
    # The driver "file" refuses a block device.
    kind = "host_device" if stat.S_ISBLK(os.fstat(device.fd).st_mode) else "file"
    node = {
        "driver": "raw",
        "node-name": node_name(number),
        "read-only": device.read_only,
        "discard": "unmap",
        "cache": {"direct": device.cache_direct, "no-flush": device.cache_no_flush},
        "file": {"driver": kind, "filename": f"/dev/fdset/{number}", "aio": device.aio},
    }
    return [
        Step(
            Command("add-fd", {"fdset-id": number, "opaque": device.id}, device.fd),
            Command("remove-fd", {"fdset-id": number}),
        ),
        Step(Command("blockdev-add", node), Command("blockdev-del", {"node-name": node_name(number)})),
    ]


def node_name(number: int) -> str:
    """The block node of a disk. QEMU allows 31 characters, so it cannot be the device's id."""
    return f"disk{number}"


def disk_in_slot(device: BlockDevice, number: int, slot: Slot) -> Step:
    """A virtio-blk device on the backend from `disk`."""
    return _virtio("blk", device.id, slot, drive=node_name(number), **_ON_FULL, **_serial(device))


def disk_into_empty(empty: str, number: int) -> Step:
    """Put the backend from `disk` into an empty disk.

    Args:
        empty: name of the empty disk, and of the block node that it goes back to.
        number: as of `disk`.
    """

    def exchange(node: str) -> Command:
        return Command("qom-set", {"path": f"/machine/peripheral/{empty}", "property": "drive", "value": node})

    return Step(exchange(node_name(number)), exchange(empty))


def scsi_controller(slot: Slot) -> Step:
    """The virtio-scsi controller, SCSI_CONTROLLER."""
    return _virtio("scsi", SCSI_CONTROLLER, slot)


def disk_on_scsi(device: BlockDevice, number: int, unit: int) -> Step:
    """A SCSI disk on the controller and on the backend from `disk`; `unit` counts the controller's disks."""
    place = {"bus": f"{SCSI_CONTROLLER}.0", "channel": 0, "scsi-id": unit // _SCSI_UNITS, "lun": unit % _SCSI_UNITS}
    return _device("scsi-hd", device.id, drive=node_name(number), **place, **_ON_FULL, **_serial(device))


def scsi_address(unit: int) -> str:
    """The address of a disk on the controller in Kata's notation, "ID:LUN"."""
    return f"{unit // _SCSI_UNITS}:{unit % _SCSI_UNITS}"


def network(device: NetworkDevice, slot: Slot) -> list[Step]:
    """A network interface with its tap device.

    The guest's driver is not told an MTU: it would be the largest that the interface can ever have.
    """
    taps = [f"{device.id}-tap{index}" for index in range(len(device.taps))]
    vhosts = [f"{device.id}-vhost{index}" for index in range(len(device.vhosts))]
    queues = len(taps)
    backend = f"{device.id}-tap"
    options: dict[str, object] = {"type": "tap", "id": backend, "vhost": bool(vhosts)}
    options |= {"fds": ":".join(taps)} if queues > 1 else {"fd": taps[0]}
    if vhosts:
        options |= {"vhostfds": ":".join(vhosts)} if queues > 1 else {"vhostfd": vhosts[0]}
    # The guest does not boot from it, so it needs no ROM.
    properties: dict[str, object] = {"netdev": backend, "mac": device.mac, "romfile": ""}
    if queues > 1:
        # An interrupt for each queue, one for the control queue, one for configuration changes.
        properties |= {"mq": True, "vectors": 2 * queues + 2}
    return [
        *(
            Step(Command("getfd", {"fdname": name}, fd), Command("closefd", {"fdname": name}), passing=True)
            for name, fd in zip([*taps, *vhosts], [*device.taps, *device.vhosts], strict=True)
        ),
        Step(Command("netdev_add", options), Command("netdev_del", {"id": backend})),
        _virtio("net", device.id, slot, **properties),
    ]


def file_system(device: FileSystemDevice, slot: Slot) -> list[Step]:
    """The shared tree over virtio-fs, with Kata's queue size."""
    place = {"bus": slot.bus, "addr": slot.address}
    properties: dict[str, object] = {"chardev": device.chardev, "tag": device.tag, "queue-size": 1024}
    return [_device("vhost-user-fs-pci", device.id, **place, **properties)]


def vfio(device: VfioDevice, slot: Slot) -> list[Step]:
    """A VFIO-bound PCI device."""
    return [_device("vfio-pci", device.id, host=device.host, bus=slot.bus, addr=slot.address)]


def _serial(device: BlockDevice) -> dict[str, object]:
    return {"serial": device.serial} if device.serial else {}


def _virtio(kind: str, device_id: str, slot: Slot, **properties: object) -> Step:
    # Modern virtio only: the legacy interface needs I/O space, which suffices for a few devices.
    place = {"bus": slot.bus, "addr": slot.address, "disable-legacy": "on"}
    return _device(f"virtio-{kind}-pci", device_id, **place, **properties)


def _device(driver: str, device_id: str, **properties: object) -> Step:
    add = Command("device_add", {"driver": driver, "id": device_id, **properties})
    return Step(add, Command("device_del", {"id": device_id}))
