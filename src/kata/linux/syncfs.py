"""syncfs(2): what was written to one file system, on its device."""

import ctypes

from kata.linux.libc import LIBC, check

LIBC.syncfs.argtypes = (ctypes.c_int,)


def syncfs(fd: int) -> None:
    """Write back all of the file system that a descriptor is of, and wait for it.

    Args:
        fd: of anything in it, not opened with O_PATH.

    Raises:
        OSError: some of it could not be written.
    """
    check(LIBC.syncfs(fd), "syncfs")
