"""Directories as erofs images, which a guest mounts read-only.

Not compressed: an emulated guest would decompress at a fraction of a disk's speed. The bytes depend on the directory
only, and on the version of mkfs.erofs.
"""

from __future__ import annotations

import os
from pathlib import Path

from kata.command import run
from kata.errors import Internal, NotFound

_TIMEOUT_S = 900.0
_UUID = "00000000-0000-0000-0000-000000000000"
#: Of the image, in seconds since 1970: later than any file, since mkfs.erofs cuts off what comes after it.
_DATE = "9999999999"
_SUPERBLOCK = 1024
_MAGIC = (0xE0F5E1E2).to_bytes(4, "little")


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
    options = ["--quiet", f"-U{_UUID}"]
    run(["mkfs.erofs", *options, str(image), str(tree)], timeout=_TIMEOUT_S, env={"SOURCE_DATE_EPOCH": _DATE})
    with image.open("rb") as file:
        os.fsync(file.fileno())
        file.seek(_SUPERBLOCK)
        if file.read(len(_MAGIC)) != _MAGIC:
            raise Internal(f"mkfs.erofs has written no erofs image to {image}")
