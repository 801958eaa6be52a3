"""The mount table of a process: /proc/PID/mountinfo, parsed.

    36 35 98:0 /mnt1 /mnt2 rw,noatime shared:1 - ext3 /dev/root rw,errors=continue
    (1)(2)(3)   (4)   (5)      (6)      (7)   (8) (9)   (10)         (11)

Source: proc_pid_mountinfo(5). The shim's short-lived `delete` imports this file, so it imports next to nothing.
"""

from __future__ import annotations

import os

#: Not that of "self": a thread may be in a mount namespace of its own.
SELF = "/proc/thread-self/mountinfo"


class Mount:
    """One line of the table.

    Attributes:
        id: of the mount (1), unique as long as it exists; see `id_of`.
        device: of the file system, "major:minor" (3).
        root: the directory of the file system that is mounted (4); for cgroup file systems a cgroup's path.
        point: where it is mounted (5), as the process sees it from its root directory.
        terms: options of the mount, and its propagation (6, 7): "rw,noatime shared:1".
        shared: whether mounts made beneath propagate to a peer group (7).
        slave: whether those of a peer group propagate to it (7).
        fstype: type of the file system (9).
        options: options of the file system (11), not of the mount: {"size": "64k", "ro": ""}.
    """

    __slots__ = ("device", "fstype", "id", "options", "point", "root", "shared", "slave", "terms")

    def __init__(self, line: str) -> None:
        # A space within a field is escaped, so the first " - " is the separator (8).
        mount, _, filesystem = line.rstrip("\n").partition(" - ")
        number, _, self.device, root, point, *terms = mount.split(" ")
        self.fstype, _, options = filesystem.split(" ", 2)
        self.id = int(number)
        self.root = _unescape(root)
        self.point = _unescape(point)
        self.terms = " ".join(terms)
        self.shared = any(field.startswith("shared:") for field in terms[1:])
        self.slave = any(field.startswith("master:") for field in terms[1:])
        self.options = {name: value for name, _, value in (option.partition("=") for option in options.split(","))}


def read(path: str = SELF) -> list[Mount]:
    """All mounts of a process, in the order of the table: a mount comes after what it is mounted on.

    Raises:
        OSError: there is no such process, or it may not be looked at.
    """
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return [Mount(line) for line in file]


def id_of(fd: int) -> int:
    """The id of the mount that an open file is on.

    Raises:
        OSError: the descriptor is not open.
    """
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))


def points_below(directory: str) -> list[str]:
    """Where something is mounted for this process at or below `directory`, innermost first."""
    prefix = directory.rstrip("/") + "/"
    return [mount.point for mount in reversed(read()) if f"{mount.point}/".startswith(prefix)]


def mounted_at(point: str) -> Mount | None:
    """What this process finds mounted at `point`, the topmost of several; None if it is no mount point."""
    path = os.path.realpath(point)
    return next((mount for mount in reversed(read()) if mount.point == path), None)


def mount_id(path: str) -> int:
    """The `Mount.id` of the mount that a path is on, even if a chroot hides it. Raises OSError."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return id_of(fd)
    finally:
        os.close(fd)


def _unescape(field: str) -> str:
    r"""Undo the kernel's escapes: space, tab, newline, backslash and "#" stand as three octal digits, "\040"."""
    first, *rest = field.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)
