"""Mounted file systems of volumes: how full one is, and growing one to the size of its disk.

Sources: statvfs(3); the kernel's include/uapi/linux/ext4.h and fs/xfs/libxfs/xfs_fs.h.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct

from kata.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, Unimplemented
from kata.linux import mountinfo
from kata.loop.off import off_loop
from kata.protocols import csi_pb2

_SYS_BLOCK = "/sys/dev/block"
_SECTOR_SIZE = 512
#: Between two checks of whether the kernel has noticed that a disk has grown.
_POLL_S = 0.02

#: _IOW('f', 16, __u64): the new number of blocks.
_EXT4_IOC_RESIZE_FS = 0x40086610
#: _IOR('X', 126, struct xfs_fsop_geom), of 256 bytes; the first word is the block's size, the eighth `imaxpct`.
_XFS_IOC_FSGEOMETRY = 0x8100587E
_XFS_GEOMETRY_SIZE = 256
#: _IOW('X', 110, struct xfs_growfs_data): blocks, percentage of inodes.
_XFS_IOC_FSGROWFSDATA = 0x4010586E


def stats(path: str) -> csi_pb2.VolumeStatsResponse:
    """Return bytes and inodes of the file system at `path` (statvfs(3)).

    Raises:
        OSError: it cannot be asked.
    """
    space = os.statvfs(path)
    answer = csi_pb2.VolumeStatsResponse()
    block = space.f_frsize
    answer.usage.add(
        unit=csi_pb2.VolumeUsage.BYTES,
        total=space.f_blocks * block,
        available=space.f_bavail * block,
        used=(space.f_blocks - space.f_bfree) * block,
    )
    answer.usage.add(
        unit=csi_pb2.VolumeUsage.INODES,
        total=space.f_files,
        available=space.f_favail,
        used=space.f_files - space.f_ffree,
    )
    answer.volume_condition.message = "OK"
    return answer


async def grow(path: str, size: int, timeout: float) -> None:
    """Wait until the disk below a mounted file system has grown, and grow the file system to fill it.

    Args:
        path: the mount point.
        size: bytes that the disk must have.
        timeout: seconds to wait for that.

    Raises:
        InvalidArgument: the file system is not on a disk.
        DeadlineExceeded: the disk has not grown.
        Unimplemented: the file system cannot grow while mounted: it is not ext2, ext3, ext4 or xfs.
        FailedPrecondition: the kernel refuses.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        disk = _disk_of(fd)
        _rescan(disk)
        length = await _wait(disk, size, timeout)
        mounted = mountinfo.mounted_at(path)
        await off_loop(_grow, fd, mounted.fstype if mounted else "", length)
    finally:
        os.close(fd)


def _grow(fd: int, fstype: str, length: int) -> None:
    try:
        if fstype.startswith("ext"):
            blocks = length // os.fstatvfs(fd).f_bsize
            fcntl.ioctl(fd, _EXT4_IOC_RESIZE_FS, struct.pack("Q", blocks))
        elif fstype == "xfs":
            _grow_xfs(fd, length)
        else:
            raise Unimplemented(f"a mounted file system of type {fstype} cannot grow")
    except OSError as error:
        raise FailedPrecondition(f"cannot grow the file system to {length} bytes: {error.strerror}") from error


def _disk_of(fd: int) -> str:
    number = os.fstat(fd).st_dev
    disk = f"{_SYS_BLOCK}/{os.major(number)}:{os.minor(number)}"
    if not os.path.exists(f"{disk}/size"):
        raise InvalidArgument("the volume is not on a disk")
    return disk


def _rescan(disk: str) -> None:
    """Have the kernel read a SCSI disk's size again; a virtio disk announces a new one."""
    if os.path.exists(f"{disk}/device/rescan"):
        with open(f"{disk}/device/rescan", "w", encoding="ascii") as file:
            file.write("1")


def _length(disk: str) -> int:
    with open(f"{disk}/size", encoding="ascii") as file:
        return int(file.read()) * _SECTOR_SIZE


async def _wait(disk: str, size: int, timeout: float) -> int:
    """Wait for a disk's new size, and return what it has, in bytes.

    Raises:
        DeadlineExceeded: it is still smaller after `timeout` seconds.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    while True:
        length = _length(disk)
        if length >= size // _SECTOR_SIZE * _SECTOR_SIZE:
            return length
        if asyncio.get_running_loop().time() > deadline:
            raise DeadlineExceeded(f"the disk has {length} bytes after {timeout:.0f} s instead of {size}")
        await asyncio.sleep(_POLL_S)


def _grow_xfs(fd: int, length: int) -> None:
    geometry = struct.unpack_from("8I", fcntl.ioctl(fd, _XFS_IOC_FSGEOMETRY, bytes(_XFS_GEOMETRY_SIZE)))
    fcntl.ioctl(fd, _XFS_IOC_FSGROWFSDATA, struct.pack("QIxxxx", length // geometry[0], geometry[7]))
