"""What can be plugged into a running machine: descriptions, pure data.

Descriptors in them stay the caller's, who keeps them open until `VirtualMachine.plug` has returned. The caller has
opened them where it may look (the sandbox's mount and network namespace, beneath the right root): the monitor opens
nothing by name, but for a VFIO device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kata.errors import InvalidArgument
from kata.linux import pci

#: QEMU's rule for names (`id_wellformed`), and a length that leaves room for what is made of it.
_ID = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
#: What fits into the answer of a virtio disk (VIRTIO_BLK_ID_BYTES).
_SERIAL = re.compile(r"[!-~]{0,20}")
#: Kata's names, which are also those of the setting `block_device_driver`.
BLOCK_DRIVERS = ("virtio-blk", "virtio-scsi")
AIO = ("threads", "native", "io_uring")
_MAXIMUM_QUEUES = 256
_MTU = range(68, 65536)


@dataclass(frozen=True, kw_only=True)
class BlockDevice:
    """A disk: an image file or a block device of the host.

    Attributes:
        id: its name, one of its own in the machine.
        fd: what it is, open for reading, and for writing unless it is read-only.
        driver: what the guest sees, one of BLOCK_DRIVERS.
        cache_direct: whether the host's page cache is bypassed (O_DIRECT).
        cache_no_flush: whether the guest's flushes are ignored.
        aio: how the monitor reads and writes, one of AIO; "native" takes `cache_direct`.
        serial: what the guest reads as the disk's serial number: at most 20 printable characters.
    """

    id: str
    fd: int
    read_only: bool = False
    driver: str = "virtio-blk"
    cache_direct: bool = False
    cache_no_flush: bool = False
    aio: str = "threads"
    serial: str = ""

    def __post_init__(self) -> None:
        _check(self.id, _ID, "device id")
        _check(self.serial, _SERIAL, f"serial number of disk {self.id}")
        if self.driver not in BLOCK_DRIVERS or self.aio not in AIO:
            raise InvalidArgument(f"disk {self.id}: driver {self.driver!r} with aio {self.aio!r} is not known")
        if self.aio == "native" and not self.cache_direct:
            raise InvalidArgument(f"disk {self.id}: aio native works only with the page cache bypassed")


@dataclass(frozen=True, kw_only=True)
class NetworkDevice:
    """A network interface on a tap device.

    Attributes:
        id: its name, one of its own in the machine.
        taps: the tap device, one descriptor for each pair of queues.
        vhosts: /dev/vhost-net as often, or empty for none.
        mac: hardware address, lower case; the guest's driver finds it.
        mtu: what the guest's driver is told, or 0 for nothing.
    """

    id: str
    taps: tuple[int, ...]
    vhosts: tuple[int, ...] = ()
    mac: str
    mtu: int = 0

    def __post_init__(self) -> None:
        _check(self.id, _ID, "device id")
        _check(self.mac, _MAC, f"hardware address of network device {self.id}")
        if not 1 <= len(self.taps) <= _MAXIMUM_QUEUES or len(self.vhosts) not in (0, len(self.taps)):
            raise InvalidArgument(f"network device {self.id}: {len(self.taps)} queues, {len(self.vhosts)} for vhost")
        if self.mtu and self.mtu not in _MTU:
            raise InvalidArgument(f"network device {self.id}: an MTU of {self.mtu} is impossible")


@dataclass(frozen=True, kw_only=True)
class VfioDevice:
    """A PCI device of the host, bound to vfio-pci.

    Attributes:
        id: its name, one of its own in the machine.
        host: its address on the host, such as "0000:3b:00.0".
    """

    id: str
    host: str

    def __post_init__(self) -> None:
        _check(self.id, _ID, "device id")
        _check(self.host, pci.ADDRESS, f"PCI address of device {self.id}")


Device = BlockDevice | NetworkDevice | VfioDevice


def _check(text: str, pattern: re.Pattern[str], what: str) -> None:
    if not pattern.fullmatch(text):
        raise InvalidArgument(f"{what} {text!r} is not well formed")
