"""The disk that a container's root is written to, where its layers are disks: a sparse image file with an ext4.

It takes as much of the host's disk as has been written to it, and is removed with its sandbox.
"""

from __future__ import annotations

import os
from pathlib import Path

from kata.command import run
from kata.errors import NotFound

_TIMEOUT_S = 60.0
#: No journal, since nobody mounts it a second time. A sparse file is zero, so no table has to be written.
_OPTIONS = ("-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0")
_SPARSE = ("-E", "lazy_itable_init=1,assume_storage_prezeroed=1")


def make_upper_disk(path: Path, size: int) -> None:
    """Make the image file, which must not exist.

    Args:
        path: of the file.
        size: bytes that the file system has, less its tables.

    Raises:
        NotFound: mke2fs is not installed.
        OSError: the file cannot be made, or the disk is full.
        DeadlineExceeded, Internal: mke2fs failed.
    """
    if not os.access("/usr/sbin/mke2fs", os.X_OK):
        raise NotFound("mke2fs is not installed", hint="install the package e2fsprogs")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.truncate(size)
    run(["mke2fs", *_OPTIONS, *_SPARSE, str(path)], timeout=_TIMEOUT_S)
