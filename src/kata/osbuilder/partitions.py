"""Kata's layout of an image: its file system in a partition, behind a header by which a guest can map it.

    0       a partition table, for who reads the file as a disk: one partition at 3 MiB
    4 KiB   the header of a persistent memory: what is mapped begins at 2 MiB
    2 MiB   a partition table, for who maps the image: the same partition, 1 MiB further on
    3 MiB   the file system
    …       up to a multiple of 128 MiB, in which QEMU plugs memory in

Our guests have it as a disk. That it can be mapped is for Kata's, whose image builder makes the same. Pure: sizes in,
bytes out.

References: Kata's tools/osbuilder/image-builder (image_builder.sh, nsdax.c); `struct nd_pfn_sb` and `nd_fletcher64` in
drivers/nvdimm of the Linux kernel; "Master boot record" for the table.
"""

from __future__ import annotations

import struct

_MIB = 1 << 20
_SECTOR = 512
#: Of the file system in the image, in bytes.
START = 3 * _MIB
#: Where the mapped part begins.
_MAPPED = 2 * _MIB
_HEADER = 4096
_ALIGNMENT = 128 * _MIB
#: The partition's type: Linux.
_LINUX = 0x83
#: Cylinder, head and sector of what lies beyond them.
_BEYOND = b"\xfe\xff\xff"
#: How the header says that the guest's page descriptors are in its memory, and not in the image.
_IN_MEMORY = 1


def size(content: int) -> int:
    """Bytes of an image with a file system of this many bytes."""
    return -(-(START + content) // _ALIGNMENT) * _ALIGNMENT


def head(content: int, identity: bytes) -> bytes:
    """What comes before the file system: START bytes.

    Args:
        content: bytes of the file system.
        identity: four bytes by which the disk is told from others.
    """
    found = bytearray(START)
    found[:_SECTOR] = _table(START, content, identity)
    found[_HEADER : _HEADER + 4096] = _memory_header()
    found[_MAPPED : _MAPPED + _SECTOR] = _table(START - _MAPPED, content, identity)
    return bytes(found)


def _table(start: int, content: int, identity: bytes) -> bytes:
    """A partition table with one entry: where it starts, and how long it is, in bytes."""
    sectors = -(-content // _SECTOR)
    entry = struct.pack("<B3sB3sII", 0, _BEYOND, _LINUX, _BEYOND, start // _SECTOR, sectors)
    return bytes(440) + identity + bytes(2) + entry + bytes(48) + b"\x55\xaa"


def _memory_header() -> bytes:
    """The kernel's `struct nd_pfn_sb`, version 1.2."""
    no_identity = bytes(16)
    fields = struct.pack(
        "<16s16s16sIHHQQIIII",
        *(b"NVDIMM_PFN_INFO", no_identity, no_identity),
        *(0, 0, 2),  # flags, version
        *(_MAPPED, 0, _IN_MEMORY),  # offset of the data, number of page frames, mode
        *(0, 0, _MAPPED),  # padding at the start and at the end, alignment
    )
    unsigned = fields.ljust(4096, b"\0")
    return unsigned[:-8] + struct.pack("<Q", _checksum(unsigned))


def _checksum(header: bytes) -> int:
    """Fletcher's sums of 32-bit words, the second one above the first."""
    low = high = 0
    for (word,) in struct.iter_unpack("<I", header):
        low = (low + word) & 0xFFFFFFFF
        high = (high + low) & 0xFFFFFFFFFFFFFFFF
    return (high << 32 | low) & 0xFFFFFFFFFFFFFFFF
