"""Ways to change a file by a descriptor of it: each raises OSError where it is refused."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable

from kata.linux.libc import LIBC, check

_PUNCH_HOLE = 0x1 | 0x2  # with the size kept: fallocate(2)


def _map_shared(fd: int) -> None:
    with mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        mapped[:4] = b"mine"


def _protect(fd: int) -> None:
    """Map it for reading, which is allowed, and then make that writable, by mprotect(2)."""
    LIBC.mmap.restype = ctypes.c_void_p
    size = ctypes.c_size_t(mmap.PAGESIZE)
    address = ctypes.c_void_p(LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0)))
    try:
        check(LIBC.mprotect(address, size, mmap.PROT_READ | mmap.PROT_WRITE), "mprotect")
    finally:
        LIBC.munmap(address, size)


def _punch_hole(fd: int) -> None:
    size = ctypes.c_long(mmap.PAGESIZE)
    check(LIBC.fallocate(fd, _PUNCH_HOLE, ctypes.c_long(0), size), "fallocate")


def _send(fd: int) -> None:
    source = os.memfd_create("source")
    try:
        os.pwrite(source, b"mine", 0)
        os.sendfile(fd, source, 0, 4)
    finally:
        os.close(source)


ways_to_write: dict[str, Callable[[int], object]] = {
    "pwrite": lambda fd: os.pwrite(fd, b"mine", 0),
    "writev": lambda fd: os.pwritev(fd, [b"mi", b"ne"], 0),
    "sendfile": _send,
    "shared mapping": _map_shared,
    "mprotect": _protect,
    "shrink": lambda fd: os.ftruncate(fd, 0),
    "grow": lambda fd: os.ftruncate(fd, 1 << 40),
    "hole": _punch_hole,
}
