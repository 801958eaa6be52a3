"""The disks of a sandbox: opened, plugged once for all containers that use them, unplugged after the last.

A writable disk is opened exclusively (O_EXCL): the kernel refuses one that is mounted on the host or that another VM
writes to, and refuses others for as long as the VMM has it open. The VMM locks image files for the same purpose.

Reference: open(2), "O_EXCL" on block devices.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

from kata.errors import FailedPrecondition, InvalidArgument, KataError, NotFound
from kata.runtime.config.settings import HypervisorConfig
from kata.runtime.hypervisor.base import VirtualMachine
from kata.runtime.hypervisor.devices import BlockDevice
from kata.runtime.storage.disk import Disk

log = logging.getLogger(__name__)

_SCSI = "virtio-scsi"


@dataclass(frozen=True)
class Attached:
    """A disk that the guest has, for the agent.

    Attributes:
        disk: the disk.
        kind: how the guest finds it: "blk" by PCI path, "scsi" by "ID:LUN".
        address: PCI path or "ID:LUN".
    """

    disk: Disk
    kind: str
    address: str


@dataclass
class _Plugged:
    """A disk that the VM has."""

    id: str
    address: str
    read_only: bool
    users: set[str] = field(default_factory=set)


class Disks:
    """The disks of one sandbox's VM.

    Args:
        vm: the VM.
        config: says which driver, cache mode and aio.
    """

    def __init__(self, vm: VirtualMachine, config: HypervisorConfig) -> None:
        self._vm = vm
        self._config = config
        self._plugged: dict[tuple[str, int, int], _Plugged] = {}
        self._count = 0
        # A container that comes while a disk is being plugged waits for it.
        self._lock = asyncio.Lock()

    async def attach(self, owner: str, disks: Sequence[Disk]) -> list[Attached]:
        """Plug the disks of a container in their order; all of them or none.

        Args:
            owner: the container's id.
            disks: its disks.

        Raises:
            NotFound, InvalidArgument: one does not exist, or is not a disk.
            FailedPrecondition: one is in use on the host, or the VMM refuses it.
            KataError: as `VirtualMachine.plug`.
        """
        attached = []
        async with self._lock:
            try:
                for disk in disks:
                    attached.append(await self._attach(owner, disk))  # noqa: PERF401 - on failure, those so far are detached
            except BaseException:
                await asyncio.shield(asyncio.ensure_future(self._detach(owner)))
                raise
        return attached

    async def detach(self, owner: str) -> None:
        """Unplug what no other container uses. What the guest does not release is logged, and ends with the VM."""
        async with self._lock:
            await self._detach(owner)

    async def grow(self, source: str, size: int) -> None:
        """Grow a disk to `size` bytes, and its image file if it is one.

        Args:
            source: its path on the host.
            size: bytes.

        Raises:
            NotFound: the VM has no such disk.
            InvalidArgument: the image file is larger.
            FailedPrecondition: the block device is smaller.
        """
        async with self._lock:
            fd, identity = _open(Disk(source, read_only=True))
            try:
                there = self._plugged.get(identity)
                is_file, length = identity[0] == "f", os.lseek(fd, 0, os.SEEK_END)
            finally:
                os.close(fd)
            if there is None:
                raise NotFound(f"disk {source} is not in the VM")
            if is_file and length > size:
                raise InvalidArgument(f"disk {source} has {length} bytes and cannot shrink to {size}")
            await self._vm.grow_disk(there.id, size)

    async def _attach(self, owner: str, disk: Disk) -> Attached:
        driver = self._config.block_device_driver
        kind = "scsi" if driver == _SCSI else "blk"
        fd, identity = _open(disk)
        try:
            there = self._plugged.get(identity)
            if there is None:
                if identity[0] == "b" and not disk.read_only:
                    fd = _exclusive(disk.source, fd)
                self._count += 1
                device = self._describe(f"disk-{self._count}", fd, disk)
                if device.cache_direct:
                    _bypass_page_cache(disk.source, fd)
                there = _Plugged(device.id, await self._vm.plug(device), disk.read_only)
                self._plugged[identity] = there
            elif there.read_only and not disk.read_only:
                raise FailedPrecondition(f"disk {disk.source} is in the VM already, and read-only")
        finally:
            os.close(fd)
        there.users.add(owner)
        return Attached(disk, kind, there.address)

    def _describe(self, device_id: str, fd: int, disk: Disk) -> BlockDevice:
        config = self._config
        cached = config.block_device_cache_set
        return BlockDevice(
            id=device_id,
            fd=fd,
            read_only=disk.read_only,
            driver=config.block_device_driver,
            cache_direct=config.block_device_aio == "native" or (cached and config.block_device_cache_direct),
            cache_no_flush=disk.scratch or (cached and config.block_device_cache_noflush),
            aio=config.block_device_aio,
        )

    async def _detach(self, owner: str) -> None:
        for identity, plugged in list(self._plugged.items()):
            plugged.users.discard(owner)
            if not plugged.users:
                del self._plugged[identity]
                try:
                    await self._vm.unplug(plugged.id)
                except KataError as error:
                    log.warning("disk of container %s: %s", owner, error)


def _open(disk: Disk) -> tuple[int, tuple[str, int, int]]:
    """Open a disk; returns the descriptor and the disk's identity, whatever its path.

    Raises:
        NotFound: it does not exist.
        InvalidArgument: it is neither a block device nor a regular file, or is empty.
        FailedPrecondition: it is in use, or cannot be opened.
    """
    # O_NONBLOCK: it may be a FIFO, or a drive without a medium.
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (os.O_RDONLY if disk.read_only else os.O_RDWR)
    try:
        fd = os.open(disk.source, flags)
    except FileNotFoundError:
        raise NotFound(f"disk {disk.source} does not exist") from None
    except OSError as error:
        raise FailedPrecondition(f"disk {disk.source} cannot be opened: {error.strerror}") from error
    try:
        info = os.fstat(fd)
        if stat.S_ISBLK(info.st_mode):
            identity = ("b", os.major(info.st_rdev), os.minor(info.st_rdev))
        elif stat.S_ISREG(info.st_mode):
            identity = ("f", info.st_dev, info.st_ino)
        else:
            raise InvalidArgument(f"disk {disk.source} is neither a block device nor a regular file")
        if not os.lseek(fd, 0, os.SEEK_END):
            raise InvalidArgument(f"disk {disk.source} is empty")
        os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return fd, identity


def _bypass_page_cache(path: str, fd: int) -> None:
    """Set O_DIRECT: QEMU since 9.1 takes a descriptor only if it was opened in the way that the disk is used.

    Raises:
        FailedPrecondition: its file system does not support that.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError as error:
        raise FailedPrecondition(
            f"disk {path} cannot bypass the page cache: {error.strerror}",
            hint="set block_device_cache_direct to false and block_device_aio to threads",
        ) from error


def _exclusive(path: str, fd: int) -> int:
    """Open the same block device exclusively; the new descriptor replaces `fd`, which is closed.

    Raises:
        FailedPrecondition: it is in use.
    """
    try:
        exclusive = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise FailedPrecondition(f"disk {path} cannot be opened: {error.strerror}") from error
        raise FailedPrecondition(
            f"disk {path} is in use on this host",
            hint="it or a partition of it is mounted, or another program or sandbox writes to it",
        ) from error
    os.close(fd)
    return exclusive
