"""Tap devices: network interfaces whose other end is a file descriptor.

References: Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h.
"""

from __future__ import annotations

import fcntl
import os
import struct

_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_MULTI_QUEUE, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x0100, 0x1000, 0x4000
_IFREQ = struct.Struct("=16sH22x")


def open_tap(name: str, queues: int = 1) -> tuple[int, ...]:
    """Make a tap device, or connect to one that is there, in the network namespace of the calling thread.

    Packets have virtio-net's header in front, as QEMU wants them. A device that was made here vanishes when the last
    copy of its descriptors is closed.

    Args:
        queues: how many descriptors it is to have.

    Raises:
        OSError: there is no /dev/net/tun, the name is taken, or somebody else is connected.
    """
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if queues > 1 else 0)
    opened: list[int] = []
    try:
        for _ in range(queues):
            opened.append(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
            fcntl.ioctl(opened[-1], _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise
    return tuple(opened)
