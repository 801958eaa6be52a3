"""The QMP commands that plug a device, and those that take it back: pure functions of its description.

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
#: Disks on one controller: Kata numbers them in this way, 256 logical units on each of 256 targets.
_SCSI_UNITS = 256


@dataclass(frozen=True)
class Command:
    """One QMP command; `fd` goes along with it."""

    name: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    fd: int | None = None


@dataclass(frozen=True)
class Step:
    """What is done, and what undoes it.

    Attributes:
        passing: the next step takes over what this one made, so it is undone only if that one fails.
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
    """The disk's content, ready for a device of the guest's.

    Args:
        number: one of its own in the machine; it names the set of descriptors and the block node.
    """
    # The driver that goes with what is open; "file" refuses a block device.
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
    """At most 31 characters are allowed, so it cannot be the device's id."""
    return f"disk{number}"


def disk_in_slot(device: BlockDevice, number: int, slot: Slot) -> Step:
    """A virtio-blk device of the guest's with the content that `disk` has prepared."""
    return _virtio("blk", device.id, slot, drive=node_name(number), **_serial(device))


def scsi_controller(slot: Slot) -> Step:
    return _virtio("scsi", SCSI_CONTROLLER, slot)


def disk_on_scsi(device: BlockDevice, number: int, unit: int) -> Step:
    """A SCSI disk on the controller with the content that `disk` has prepared; its place is `unit`."""
    place = {"bus": f"{SCSI_CONTROLLER}.0", "channel": 0, "scsi-id": unit // _SCSI_UNITS, "lun": unit % _SCSI_UNITS}
    return _device("scsi-hd", device.id, drive=node_name(number), **place, **_serial(device))


def scsi_address(unit: int) -> str:
    """ "ID:LUN", as Kata's agent takes it."""
    return f"{unit // _SCSI_UNITS}:{unit % _SCSI_UNITS}"


def network(device: NetworkDevice, slot: Slot) -> list[Step]:
    """A network interface, tap device included."""
    taps = [f"{device.id}-tap{index}" for index in range(len(device.taps))]
    vhosts = [f"{device.id}-vhost{index}" for index in range(len(device.vhosts))]
    queues = len(taps)
    backend = f"{device.id}-tap"
    options: dict[str, object] = {"type": "tap", "id": backend, "vhost": bool(vhosts)}
    options |= {"fds": ":".join(taps)} if queues > 1 else {"fd": taps[0]}
    if vhosts:
        options |= {"vhostfds": ":".join(vhosts)} if queues > 1 else {"vhostfd": vhosts[0]}
    # Nobody boots from it, so no ROM is read.
    properties: dict[str, object] = {"netdev": backend, "mac": device.mac, "romfile": ""}
    if queues > 1:
        # An interrupt for each queue, one for the control queue, one for changes of the configuration.
        properties |= {"mq": True, "vectors": 2 * queues + 2}
    if device.mtu:
        properties["host_mtu"] = device.mtu
    return [
        *(
            Step(Command("getfd", {"fdname": name}, fd), Command("closefd", {"fdname": name}), passing=True)
            for name, fd in zip([*taps, *vhosts], [*device.taps, *device.vhosts], strict=True)
        ),
        Step(Command("netdev_add", options), Command("netdev_del", {"id": backend})),
        _virtio("net", device.id, slot, **properties),
    ]


def file_system(device: FileSystemDevice, slot: Slot) -> list[Step]:
    """A directory of the host over virtio-fs, with Kata's length of the queue."""
    place = {"bus": slot.bus, "addr": slot.address}
    properties: dict[str, object] = {"chardev": device.chardev, "tag": device.tag, "queue-size": 1024}
    return [_device("vhost-user-fs-pci", device.id, **place, **properties)]


def vfio(device: VfioDevice, slot: Slot) -> list[Step]:
    """A PCI device of the host's."""
    return [_device("vfio-pci", device.id, host=device.host, bus=slot.bus, addr=slot.address)]


def _serial(device: BlockDevice) -> dict[str, object]:
    return {"serial": device.serial} if device.serial else {}


def _virtio(kind: str, device_id: str, slot: Slot, **properties: object) -> Step:
    # Modern only: the old interface needs I/O space, of which there is enough for a few devices.
    place = {"bus": slot.bus, "addr": slot.address, "disable-legacy": "on"}
    return _device(f"virtio-{kind}-pci", device_id, **place, **properties)


def _device(driver: str, device_id: str, **properties: object) -> Step:
    add = Command("device_add", {"driver": driver, "id": device_id, **properties})
    return Step(add, Command("device_del", {"id": device_id}))
