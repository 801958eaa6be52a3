"""Directories as erofs images, which a guest mounts read-only.

Not compressed: an emulated guest would decompress at a fraction of a disk's speed. The bytes depend on the directory
only, and on the version of mkfs.erofs.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from kata.command import run
from kata.errors import Internal, NotFound

_TIMEOUT_S = 900.0
_UUID = "00000000-0000-0000-0000-000000000000"
#: Of the image, in seconds since 1970: later than any file, since mkfs.erofs cuts off what comes after it.
_DATE = "9999999999"
_SUPERBLOCK = 1024
_MAGIC = (0xE0F5E1E2).to_bytes(4, "little")
_BLOCK = 4096
#: Bytes of an inode, and of a directory's entry without its name (the kernel's fs/erofs/erofs_fs.h).
_INODE, _ENTRY = 64, 12
#: Superblock, and tables of the extended attributes that many files share.
_REST = 64 << 10


def write_image(tree: Path, image: Path) -> None:
    """Write a directory as an image: owners, modes, times to the nanosecond, hard links, devices, attributes.

    Args:
        tree: the directory.
        image: the file to write; it is on the disk afterwards, even if the host loses power.

    Raises:
        NotFound: mkfs.erofs is not installed.
        OSError: the disk is full, or fails.
        DeadlineExceeded: mkfs.erofs took longer than a quarter of an hour.
        Internal: it failed.
    """
    if not os.access("/usr/bin/mkfs.erofs", os.X_OK):
        raise NotFound("mkfs.erofs is not installed", hint="install the package erofs-utils")
    # mkfs.erofs 1.8 waits for ever when the disk is full.
    disk = os.statvfs(image.parent)
    if disk.f_bfree * disk.f_frsize < most_bytes(tree):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(image.parent))
    options = ["--quiet", f"-U{_UUID}"]
    run(["mkfs.erofs", *options, str(image), str(tree)], timeout=_TIMEOUT_S, env={"SOURCE_DATE_EPOCH": _DATE})
    with image.open("rb") as file:
        os.fsync(file.fileno())
        file.seek(_SUPERBLOCK)
        if file.read(len(_MAGIC)) != _MAGIC:
            raise Internal(f"mkfs.erofs has written no erofs image to {image}")


def most_bytes(tree: Path) -> int:
    """What the image of a directory takes at most. Raises OSError."""
    found = _REST
    seen: set[tuple[int, int]] = set()
    for directory, below, names in os.walk(tree):
        entries = 2 * _ENTRY + len("...")
        for name in (*below, *names):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            entries += _ENTRY + len(os.fsencode(name))
            if (status.st_dev, status.st_ino) in seen:
                continue
            if status.st_nlink > 1:
                seen.add((status.st_dev, status.st_ino))
            attributes = os.listxattr(path, follow_symlinks=False)
            found += _INODE + sum(
                _ENTRY + len(key) + len(os.getxattr(path, key, follow_symlinks=False)) for key in attributes
            )
            if stat.S_ISREG(status.st_mode):
                found += _blocks(status.st_size)
            elif stat.S_ISLNK(status.st_mode):
                found += status.st_size
        # None of them crosses the end of a block.
        found += _blocks(entries + entries // 8)
    return found


def _blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
