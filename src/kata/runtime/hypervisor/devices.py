"""Descriptions of devices that can be hot-plugged into a VM: pure data.

Descriptors in them stay the caller's, open until `VirtualMachine.plug` has returned. The caller has opened them in the
right mount and network namespace: the VMM opens nothing by name but VFIO devices.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kata.errors import InvalidArgument
from kata.linux import pci

#: The strictest rule of a VMM (QEMU's `id_wellformed`), and a length that leaves room for a suffix.
_ID = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
#: Virtio specification, 5.2.6: VIRTIO_BLK_ID_BYTES is 20.
_SERIAL = re.compile(r"[!-~]{0,20}")
#: Kata's names, which are also those of the setting `block_device_driver`.
BLOCK_DRIVERS = ("virtio-blk", "virtio-scsi")
AIO = ("threads", "native", "io_uring")
_MAX_QUEUES = 256


@dataclass(frozen=True, kw_only=True)
class BlockDevice:
    """A disk: an image file or a block device of the host.

    Attributes:
        id: unique in the VM.
        fd: the disk, open for reading, and for writing unless `read_only`.
        read_only: whether the guest cannot write to it.
        driver: the device that the guest sees, one of BLOCK_DRIVERS.
        cache_direct: whether the host's page cache is bypassed (O_DIRECT).
        cache_no_flush: whether the guest's flushes are ignored.
        aio: how the VMM reads and writes, one of AIO; "native" needs `cache_direct`.
        serial: the disk's serial number in the guest: at most 20 printable characters.
        any_size: whether it may seem larger to the guest than it is, since only the file system on it counts: it can
            then go into an empty disk, which takes less time.

    Raises:
        InvalidArgument: a value that no disk can have.
    """

    id: str
    fd: int
    read_only: bool = False
    driver: str = "virtio-blk"
    cache_direct: bool = False
    cache_no_flush: bool = False
    aio: str = "threads"
    serial: str = ""
    any_size: bool = False

    def __post_init__(self) -> None:
        _check(self.id, _ID, "device id")
        _check(self.serial, _SERIAL, f"serial number of disk {self.id}")
        if self.driver not in BLOCK_DRIVERS or self.aio not in AIO:
            raise InvalidArgument(f"disk {self.id}: unknown driver {self.driver!r} or aio {self.aio!r}")
        if self.aio == "native" and not self.cache_direct:
            raise InvalidArgument(f"disk {self.id}: aio native needs the page cache to be bypassed")


@dataclass(frozen=True, kw_only=True)
class NetworkDevice:
    """A network interface on a tap device.

    Attributes:
        id: unique in the VM.
        taps: the tap device, one descriptor for each pair of queues.
        vhosts: as many descriptors of /dev/vhost-net, or none.
        mac: hardware address, lower case.

    Raises:
        InvalidArgument: a value that no interface can have.
    """

    id: str
    taps: tuple[int, ...]
    vhosts: tuple[int, ...] = ()
    mac: str

    def __post_init__(self) -> None:
        _check(self.id, _ID, "device id")
        _check(self.mac, _MAC, f"hardware address of network device {self.id}")
        if not 1 <= len(self.taps) <= _MAX_QUEUES or len(self.vhosts) not in (0, len(self.taps)):
            raise InvalidArgument(
                f"network device {self.id}: {len(self.taps)} queues with {len(self.vhosts)} for vhost"
            )


@dataclass(frozen=True, kw_only=True)
class VfioDevice:
    """A VFIO-bound PCI device of the host.

    Attributes:
        id: unique in the VM.
        host: its address on the host, such as "0000:3b:00.0".

    Raises:
        InvalidArgument: id or address is malformed.
    """

    id: str
    host: str

    def __post_init__(self) -> None:
        _check(self.id, _ID, "device id")
        _check(self.host, pci.ADDRESS, f"PCI address of device {self.id}")


Device = BlockDevice | NetworkDevice | VfioDevice


def _check(text: str, pattern: re.Pattern[str], what: str) -> None:
    if not pattern.fullmatch(text):
        raise InvalidArgument(f"invalid {what} {text!r}")
