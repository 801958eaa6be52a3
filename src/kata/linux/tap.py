"""Tap devices: network interfaces whose other end is a file descriptor.

Sources: Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_DEVICE = "/dev/net/tun"
#: Device node of a macvtap interface, by its index.
_MACVTAP = "/dev/tap{}"
_TUNSETIFF, _TUNGETIFF = 0x400454CA, 0x800454D2
_IFF_TAP, _IFF_MULTI_QUEUE, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x0100, 0x1000, 0x4000
_IFREQ = struct.Struct("=16sH22x")


def open_tap(name: str, queues: int = 1) -> tuple[int, ...]:
    """Make a tap device, or attach to an existing one, in the network namespace of the calling thread.

    Packets begin with virtio-net's header, as QEMU expects. A device that was made here is removed when the last copy
    of its descriptors is closed.

    Args:
        name: of the interface.
        queues: how many descriptors to open.

    Raises:
        OSError: there is no /dev/net/tun, the name is taken, or the device is in use.
    """
    return _open(_DEVICE, name, _IFF_TAP | (_IFF_MULTI_QUEUE if queues > 1 else 0), queues)


def open_macvtap(index: int, name: str, queues: int = 1) -> tuple[int, ...]:
    """Attach to a macvtap interface, which has a device node of its own.

    Args:
        index: of the interface, which is in the name of the node.
        name: of the interface, which the node must belong to.
        queues: how many descriptors to open.

    Raises:
        OSError: it has no node; ENODEV if the node is another namespace's interface with the same index.
    """
    opened = _open(_MACVTAP.format(index), name, _IFF_TAP, queues)
    found, _ = _IFREQ.unpack(fcntl.ioctl(opened[0], _TUNGETIFF, bytes(_IFREQ.size)))
    if found.rstrip(b"\0") != name.encode():
        for fd in opened:
            os.close(fd)
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), _MACVTAP.format(index))
    return opened


def _open(device: str, name: str, flags: int, queues: int) -> tuple[int, ...]:
    opened: list[int] = []
    try:
        for _ in range(queues):
            opened.append(os.open(device, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
            fcntl.ioctl(opened[-1], _TUNSETIFF, _IFREQ.pack(name.encode(), flags | _IFF_NO_PI | _IFF_VNET_HDR))
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise
    return tuple(opened)
