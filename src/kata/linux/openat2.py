"""openat2(2): paths that cannot leave a directory, whatever symbolic links are on the way.

Every path that comes from the other side of the VM boundary is opened with these, beneath a root.
"""

from __future__ import annotations

import ctypes
import errno
import os

from kata.linux.libc import LIBC, check

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_MAX_ATTEMPTS = 100
_SYS_OPENAT2 = 437  # the same on every architecture: system calls are numbered together since 5.1


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(dir_fd: int, path: str, flags: int, mode: int = 0, resolve: int = RESOLVE_IN_ROOT) -> int:
    """Open `path` relative to `dir_fd` under the rules of `resolve`. The caller owns the descriptor (close-on-exec).

    Args:
        dir_fd: the directory.
        path: relative, or absolute with RESOLVE_IN_ROOT.
        flags: O_*, as for open(2).
        mode: permission bits of a new file; must be 0 without O_CREAT or O_TMPFILE.
        resolve: RESOLVE_*.

    Raises:
        OSError: EXDEV for a path that leaves the directory, or the mount with RESOLVE_NO_XDEV; ELOOP for a link where
            none is allowed; and open(2)'s.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve | RESOLVE_NO_MAGICLINKS)
    number, size = ctypes.c_long(_SYS_OPENAT2), ctypes.c_size_t(ctypes.sizeof(how))
    arguments = (number, ctypes.c_int(dir_fd), os.fsencode(path), ctypes.byref(how), size)
    result, tries = LIBC.syscall(*arguments), 1
    # The kernel could not rule out that a concurrent rename or mount diverted "..", and asks to try again.
    while result < 0 and ctypes.get_errno() == errno.EAGAIN and tries < _MAX_ATTEMPTS:
        result, tries = LIBC.syscall(*arguments), tries + 1
    return check(result, "openat2", path)


def relative_parts(path: str) -> list[str]:
    """The components of a path without empty ones and ".".

    Raises:
        ValueError: a ".." or a NUL byte, which are refused rather than resolved: honest senders never need them.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise ValueError(f"path {path!r} contains '..' or a NUL byte")
    return parts


def open_directory(dir_fd: int, path: str, *, create_mode: int | None = None) -> int:
    """Open the directory `path` beneath `dir_fd`, following no symbolic link at all.

    Args:
        dir_fd: the directory to begin at.
        path: relative.
        create_mode: mode of missing directories, which are made (the umask applies); None to make none.

    Raises:
        OSError: ELOOP for a symbolic link, ENOTDIR, ENOENT…
        ValueError: see relative_parts.
    """
    flags = os.O_PATH | os.O_DIRECTORY
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
    fd = openat2(dir_fd, ".", flags, resolve=resolve)
    try:
        for part in relative_parts(path):
            if create_mode is not None:
                try:
                    os.mkdir(part, create_mode, dir_fd=fd)
                except FileExistsError:
                    pass
            deeper = openat2(fd, part, flags, resolve=resolve)
            os.close(fd)
            fd = deeper
    except BaseException:
        os.close(fd)
        raise
    return fd
