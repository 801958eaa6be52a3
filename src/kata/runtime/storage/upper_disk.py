"""The disk that a container's root is written to, where its layers are disks: a sparse image file with an ext4.

It takes as much of the host's disk as has been written to it. It has no name (O_TMPFILE), so that it cannot stay.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path

from kata.command import run
from kata.errors import FailedPrecondition, NotFound, ResourceExhausted
from kata.runtime.config.settings import RuntimeConfig

_TIMEOUT_S = 60.0
#: No journal and no checksums, since nobody mounts it a second time. A sparse file is zero, so no table has to be
#: written. That leaves a quarter of a megabyte for 20 GiB.
_OPTIONS = ("-q", "-F", "-t", "ext4", "-O", "^has_journal,^resize_inode,^metadata_csum,uninit_bg", "-m", "0")
_SPARSE = ("-E", "lazy_itable_init=1,assume_storage_prezeroed=1")


def make_upper_disk(directory: Path, size: int) -> int:
    """Make the image file; returns a descriptor of it. It is gone when that and its copies are closed.

    Args:
        directory: where it takes its space; made if it does not exist.
        size: bytes that the file system has, less its tables.

    Raises:
        NotFound: mke2fs is not installed.
        ResourceExhausted: the disk is full.
        FailedPrecondition: the file cannot be made there.
        DeadlineExceeded, Internal: mke2fs failed.
    """
    if not os.access("/usr/sbin/mke2fs", os.X_OK):
        raise NotFound("mke2fs is not installed", hint="install the package e2fsprogs")
    fd = -1
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        os.truncate(fd, size)
        _format(fd, size)
    except BaseException as error:
        if fd >= 0:
            os.close(fd)
        if not isinstance(error, OSError):
            raise
        what = f"cannot make a disk for a root file system in {directory}: {(error.strerror or str(error)).lower()}"
        if error.errno == errno.ENOSPC:
            raise ResourceExhausted(what, hint="free some space, or set rootfs_upper_path") from error
        raise FailedPrecondition(what, hint="set rootfs_upper_path to a directory on a disk") from error
    return fd


def _format(fd: int, size: int) -> None:
    """Make the file system in memory, and copy what is not zero: mke2fs would wait for the host's disk.

    Raises:
        OSError: the disk is full.
        DeadlineExceeded, Internal: mke2fs failed.
    """
    memory = os.memfd_create("upper", os.MFD_CLOEXEC)
    try:
        os.truncate(memory, size)
        run(["mke2fs", *_OPTIONS, *_SPARSE, f"/proc/self/fd/{memory}"], timeout=_TIMEOUT_S, pass_fds=(memory,))
        begin = 0
        while True:
            try:
                begin = os.lseek(memory, begin, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing follows
                    return
                raise
            end = os.lseek(memory, begin, os.SEEK_HOLE)
            while begin < end:
                begin += os.pwrite(fd, os.pread(memory, min(end - begin, 1 << 20), begin), begin)
    finally:
        os.close(memory)


def upper_of(config: RuntimeConfig, held: ExitStack) -> str:
    """What is written to and not kept: an image file, or "" for the guest's memory.

    Args:
        config: says which.
        held: gets what keeps the file.

    Raises:
        KataError: as `make_upper_disk`.
    """
    if config.rootfs_upper == "memory":
        return ""
    fd = make_upper_disk(config.rootfs_upper_path, config.rootfs_upper_size << 20)
    held.callback(os.close, fd)
    return f"/proc/self/fd/{fd}"
