"""mount(2) and umount2(2), and the translation of mount options to flags.

Sources: mount(2), umount2(2); option names as in mount(8) and in the OCI runtime specification ("mounts").
Not here: policy about what may be mounted where.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from typing import NamedTuple

from kata.linux.libc import LIBC, check

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_REC = 0x4000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24

MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

# Per-mount flags: a bind mount takes them only in a second, remounting call.
_PER_MOUNT = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME | MS_RELATIME | MS_STRICTATIME

_SET = {
    "ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC, "sync": MS_SYNCHRONOUS,
    "remount": MS_REMOUNT, "mand": MS_MANDLOCK, "dirsync": MS_DIRSYNC, "noatime": MS_NOATIME,
    "nodiratime": MS_NODIRATIME, "bind": MS_BIND, "rbind": MS_BIND | MS_REC, "relatime": MS_RELATIME,
    "strictatime": MS_STRICTATIME,
}  # fmt: skip
_CLEAR = {
    "rw": MS_RDONLY, "suid": MS_NOSUID, "dev": MS_NODEV, "exec": MS_NOEXEC, "async": MS_SYNCHRONOUS,
    "nomand": MS_MANDLOCK, "atime": MS_NOATIME, "diratime": MS_NODIRATIME, "norelatime": MS_RELATIME,
    "nostrictatime": MS_STRICTATIME, "defaults": 0,
}  # fmt: skip
_PROPAGATION = {
    "private": MS_PRIVATE, "rprivate": MS_PRIVATE | MS_REC, "slave": MS_SLAVE, "rslave": MS_SLAVE | MS_REC,
    "shared": MS_SHARED, "rshared": MS_SHARED | MS_REC, "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | MS_REC,
}  # fmt: skip

#: What `parse_options` understands.
OPTION_NAMES = frozenset((*_SET, *_CLEAR, *_PROPAGATION))

# The same on every architecture: system calls are numbered together since 5.1.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC = 0x1, 0x1
_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 0x1, 0x4
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID = 0x1, 0x2

LIBC.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
LIBC.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


class Options(NamedTuple):
    """Mount options, sorted by the system call that takes them.

    Attributes:
        flags: MS_* bits of the mount.
        propagation: MS_PRIVATE and relatives, for a call of their own; 0 for none.
        data: what only the file system understands, comma-separated.
    """

    flags: int
    propagation: int
    data: str


def parse_options(options: Iterable[str]) -> Options:
    """Sort options like "ro", "nosuid", "rslave" and "size=1m"; the last of two contradicting ones wins."""
    flags = propagation = 0
    data: list[str] = []
    for option in options:
        if option in _SET:
            flags |= _SET[option]
        elif option in _CLEAR:
            flags &= ~_CLEAR[option]
        elif option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        elif option:
            data.append(option)
    return Options(flags, propagation, ",".join(data))


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """Mount a file system, or bind or change a mount, as `flags` say.

    The arguments are those of mount(2).

    Args:
        source: a device, tag or directory, or any word if the file system has none.
        target: the mount point.
        fstype: type of the file system; "" for a bind mount or a change of flags.
        flags: MS_*.
        data: options of the file system, comma-separated.

    Raises:
        OSError: the kernel refuses; its subject is the target.
    """
    result = LIBC.mount(
        os.fsencode(source), os.fsencode(target), os.fsencode(fstype), flags, os.fsencode(data) if data else None
    )
    check(result, f"mount {fstype or 'bind'} {source}", target)


def bind(source: str, target: str, flags: int = MS_REC) -> None:
    """Bind-mount `source` on `target`.

    Args:
        source: a directory or file.
        target: an existing one of the same kind.
        flags: MS_REC or 0; the kernel ignores others here (see `restrict`).

    Raises:
        OSError: the kernel refuses; its subject is the target.
    """
    mount(source, target, flags=MS_BIND | (flags & MS_REC))


def clone_tree(path: str, recursive: bool) -> int:
    """Make a bind mount of a path in the calling thread's mount namespace that is mounted nowhere yet (open_tree).

    Args:
        path: of a directory or file, links followed.
        recursive: whether mounts beneath are included.

    Returns:
        A descriptor of it, for `attach`, which works in another mount namespace as well.

    Raises:
        OSError: there is no such path, or the kernel refuses.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    arguments = (ctypes.c_long(_SYS_OPEN_TREE), ctypes.c_int(_AT_FDCWD), os.fsencode(path), ctypes.c_uint(flags))
    return check(LIBC.syscall(*arguments), "open_tree", path)


def new_tmpfs(**options: str) -> int:
    """Make a tmpfs, without set-user-ID, that is mounted nowhere yet (fsmount).

    Args:
        **options: as tmpfs(5) has them, "size" for example.

    Returns:
        A descriptor of its root directory, for `attach`.

    Raises:
        OSError: the kernel refuses.
    """
    kind = check(LIBC.syscall(ctypes.c_long(_SYS_FSOPEN), b"tmpfs", ctypes.c_uint(_FSOPEN_CLOEXEC)), "fsopen", "tmpfs")
    try:
        for name, value in options.items():
            _configure(kind, _FSCONFIG_SET_STRING, name.encode(), value.encode())
        _configure(kind, _FSCONFIG_CMD_CREATE, None, None)
        flags = ctypes.c_uint(_FSMOUNT_CLOEXEC), ctypes.c_uint(_MOUNT_ATTR_NOSUID)
        return check(LIBC.syscall(ctypes.c_long(_SYS_FSMOUNT), ctypes.c_int(kind), *flags), "fsmount", "tmpfs")
    finally:
        os.close(kind)


def _configure(kind: int, command: int, name: bytes | None, value: bytes | None) -> None:
    arguments = (ctypes.c_int(kind), ctypes.c_uint(command), name, value, ctypes.c_int(0))
    check(LIBC.syscall(ctypes.c_long(_SYS_FSCONFIG), *arguments), "fsconfig", "tmpfs")


def attach(tree: int, target: str) -> None:
    """Mount what `clone_tree` or `new_tmpfs` has made on `target` (move_mount).

    Raises:
        OSError: the kernel refuses; its subject is the target.
    """
    source = (ctypes.c_int(tree), b"")
    destination = (ctypes.c_int(_AT_FDCWD), os.fsencode(target))
    flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
    check(LIBC.syscall(ctypes.c_long(_SYS_MOVE_MOUNT), *source, *destination, flags), "move_mount", target)


def restrict(target: str, flags: int) -> None:
    """Set per-mount flags such as MS_RDONLY on the bind mount at `target`; other flags are ignored. Raises OSError."""
    if flags & _PER_MOUNT:
        mount("none", target, flags=MS_BIND | MS_REMOUNT | (flags & _PER_MOUNT))


def make_read_only(target: str, *, recursive: bool) -> None:
    """Make the mount at `target` read-only, and those below it if `recursive` (mount_setattr(2)).

    Raises:
        OSError: EBUSY if a file on it is open for writing, and what the kernel refuses otherwise.
    """
    _set_attributes(target, "make read-only", _MOUNT_ATTR_RDONLY, 0, _AT_RECURSIVE if recursive else 0)


def open_read_only(path: str) -> int:
    """Open a file for reading by a read-only mount of its own.

    Whoever gets the descriptor cannot open the file for writing by it (/proc/self/fd), whatever their user: that ends
    with EROFS.

    Args:
        path: of a file, links followed.

    Raises:
        OSError: there is no such file, or the kernel refuses to mount it, as without CAP_SYS_ADMIN.
    """
    tree = clone_tree(path, recursive=False)
    try:
        made = f"/proc/self/fd/{tree}"
        make_read_only(made, recursive=False)
        return os.open(made, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(tree)


def make_writable(target: str) -> None:
    """Undo `make_read_only` for the mount at `target`; a read-only file system stays one. Raises OSError."""
    _set_attributes(target, "make writable", 0, _MOUNT_ATTR_RDONLY, 0)


def _set_attributes(target: str, what: str, added: int, removed: int, flags: int) -> None:
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd.
    attributes = (ctypes.c_uint64 * 4)(added, removed)
    arguments = (ctypes.c_int(_AT_FDCWD), os.fsencode(target), ctypes.c_uint(flags), ctypes.byref(attributes))
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    check(LIBC.syscall(ctypes.c_long(_SYS_MOUNT_SETATTR), *arguments, size), what, target)


def set_propagation(target: str, propagation: int) -> None:
    """Make the mount at `target` private, slave, shared or unbindable (MS_REC: and all below). Raises OSError."""
    mount("none", target, flags=propagation)


def umount(target: str, flags: int = MNT_DETACH | UMOUNT_NOFOLLOW) -> None:
    """Call umount2(2). The default detaches at once, even when busy, and follows no symbolic link. Raises OSError."""
    check(LIBC.umount2(os.fsencode(target), flags), "umount", target)
