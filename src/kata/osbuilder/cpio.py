"""A writer for cpio archives in the newc format, as the Linux kernel reads it for an initramfs.

Pure but for reading a directory: the same entries give the same bytes (inode numbers count up, times are zero, root
owns everything).
Source: Documentation/driver-api/early-userspace/buffer-format.rst of the Linux kernel.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kata.errors import NotFound

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
#: Of a header: the magic number, then 13 fields of 8 hexadecimal digits each.
_HEADER, _SIZE_FIELD, _NAME_FIELD = 110, 6, 11


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive.

    Attributes:
        path: relative, e.g. "bin/busybox"; parents come before their children.
        mode: type and permission bits as in st_mode.
        data: content of a regular file, target of a symbolic link.
        device: (major, minor) of a device node.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str) -> Entry:
    """A directory, mode 0755."""
    return Entry(path, stat.S_IFDIR | 0o755)


def file(path: str, data: bytes, mode: int = 0o644) -> Entry:
    """A regular file.

    Args:
        path: relative.
        data: its content.
        mode: permission bits.
    """
    return Entry(path, stat.S_IFREG | mode, data)


def symlink(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int) -> Entry:
    """A character device, mode 0600.

    Args:
        path: relative.
        major: number of the driver.
        minor: number of the device among the driver's.
    """
    return Entry(path, stat.S_IFCHR | 0o600, device=(major, minor))


def tree(root: Path, left_out: Iterable[str] = ()) -> Iterator[Entry]:
    """What is in a directory, sorted, parents first; only directories, files and symbolic links.

    Args:
        root: the directory.
        left_out: paths in it.

    Raises:
        OSError: a file cannot be read.
    """
    for directory, subdirectories, names in os.walk(root):
        subdirectories.sort()
        for name in sorted((*subdirectories, *names)):
            path = os.path.join(directory, name)
            below, mode = os.path.relpath(path, root), os.lstat(path).st_mode
            if below in left_out:
                continue
            if stat.S_ISREG(mode):
                with open(path, "rb") as content:
                    yield Entry(below, mode, content.read())
            elif stat.S_ISLNK(mode):
                yield Entry(below, stat.S_IFLNK | 0o777, os.fsencode(os.readlink(path)))
            elif stat.S_ISDIR(mode):
                yield Entry(below, mode)


def archive(entries: Iterable[Entry]) -> bytes:
    """The entries, in their order, as one archive."""
    parts = [_record(entry, inode) for inode, entry in enumerate(entries, start=1)]
    parts.append(_record(Entry(_TRAILER, 0), 0))
    return b"".join(parts)


def content(data: bytes, path: str) -> bytes:
    """A file's content in an archive that `archive` has made.

    Raises:
        NotFound: it has no such file.
    """
    position = 0
    while position < len(data):
        size, name_size = (
            int(data[position + 6 + 8 * field : position + 14 + 8 * field], 16) for field in (_SIZE_FIELD, _NAME_FIELD)
        )
        name_end = position + _HEADER + name_size
        start = -(-name_end // 4) * 4
        if data[position + _HEADER : name_end] == path.encode() + b"\0":
            return data[start : start + size]
        position = -(-(start + size) // 4) * 4
    raise NotFound(f"the archive has no {path}")


def _record(entry: Entry, inode: int) -> bytes:
    name = os.fsencode(entry.path) + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
