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
from typing import Any

from kata.errors import FailedPrecondition, InvalidArgument, KataError, NotFound
from kata.loop.off import off_loop
from kata.runtime.config.settings import HypervisorConfig
from kata.runtime.devices import aio
from kata.runtime.hypervisor.base import VirtualMachine
from kata.runtime.hypervisor.devices import BlockDevice
from kata.runtime.storage.disk import Disk
from kata.runtime.storage.host_mounts import on_host

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
    source: str
    address: str
    read_only: bool
    users: set[str] = field(default_factory=set)


class Disks:
    """The disks of one sandbox's VM.

    Args:
        vm: the VM.
        config: says which driver, cache mode and aio.
        accelerator: the VM's.
    """

    def __init__(self, vm: VirtualMachine, config: HypervisorConfig, accelerator: str) -> None:
        self._vm = vm
        self._config = config
        self._accelerator = accelerator
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

    def describe(self) -> list[dict[str, Any]]:
        """The disks that the VM has, for JSON."""
        return [
            {
                "type": "disk",
                "source": one.source,
                "read_only": one.read_only,
                "guest_path": one.address,
                "containers": sorted(one.users),
            }
            for one in self._plugged.values()
        ]

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
            opened = _Opened(Disk(source, read_only=True))
            try:
                await off_loop(on_host, opened.open)
                there = self._plugged.get(opened.identity)
                is_file, length = opened.identity[0] == "f", opened.size
            finally:
                opened.close()
            if there is None:
                raise NotFound(f"disk {source} is not in the VM")
            if is_file and length > size:
                raise InvalidArgument(f"disk {source} has {length} bytes and cannot shrink to {size}")
            await self._vm.grow_disk(there.id, size)

    async def _attach(self, owner: str, disk: Disk) -> Attached:
        driver = self._config.block_device_driver
        kind = "scsi" if driver == _SCSI else "blk"
        opened = _Opened(disk)
        try:
            await off_loop(on_host, opened.open)
            there = self._plugged.get(opened.identity)
            if there is None:
                if opened.identity[0] == "b" and not disk.read_only:
                    await off_loop(opened.make_exclusive)
                self._count += 1
                device = self._describe(f"disk-{self._count}", opened.fd, disk)
                if device.cache_direct:
                    opened.bypass_page_cache()
                there = _Plugged(device.id, disk.source, await self._vm.plug(device), disk.read_only)
                self._plugged[opened.identity] = there
            elif there.read_only and not disk.read_only:
                raise FailedPrecondition(f"disk {disk.source} is in the VM already, and read-only")
        finally:
            opened.close()
        there.users.add(owner)
        return Attached(disk, kind, there.address)

    def _describe(self, device_id: str, fd: int, disk: Disk) -> BlockDevice:
        config = self._config
        cached = config.block_device_cache_set
        direct = cached and config.block_device_cache_direct
        mode = aio.of_this_host(config.block_device_aio, self._accelerator, direct=direct)
        return BlockDevice(
            id=device_id,
            fd=fd,
            read_only=disk.read_only,
            driver=config.block_device_driver,
            cache_direct=mode == "native" or direct,
            cache_no_flush=disk.scratch or (cached and config.block_device_cache_noflush),
            aio=mode,
            any_size=disk.layer,
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


class _Opened:
    """A disk that has been opened, if it could be: its own calls may block, where a file server is away for example.

    Attributes:
        fd: its descriptor; -1 before `open` and after `close`.
        identity: which disk it is, whatever its path.
        size: its length in bytes.
    """

    def __init__(self, disk: Disk) -> None:
        self.fd = -1
        self.identity = ("", 0, 0)
        self.size = 0
        self._disk = disk

    def open(self) -> None:
        """Open it.

        Raises:
            NotFound: it does not exist.
            InvalidArgument: it is neither a block device nor a regular file, or is empty.
            FailedPrecondition: it is in use, or cannot be opened.
        """
        source = self._disk.source
        # O_NONBLOCK: it may be a FIFO, or a drive without a medium.
        flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (os.O_RDONLY if self._disk.read_only else os.O_RDWR)
        try:
            self.fd = os.open(source, flags)
        except FileNotFoundError:
            raise NotFound(f"disk {source} does not exist") from None
        except OSError as error:
            raise FailedPrecondition(f"disk {source} cannot be opened: {error.strerror}") from error
        info = os.fstat(self.fd)
        if stat.S_ISBLK(info.st_mode):
            self.identity = ("b", os.major(info.st_rdev), os.minor(info.st_rdev))
        elif stat.S_ISREG(info.st_mode):
            self.identity = ("f", info.st_dev, info.st_ino)
        else:
            raise InvalidArgument(f"disk {source} is neither a block device nor a regular file")
        self.size = os.lseek(self.fd, 0, os.SEEK_END)
        if not self.size:
            raise InvalidArgument(f"disk {source} is empty")
        os.set_blocking(self.fd, True)

    def make_exclusive(self) -> None:
        """Open the same block device exclusively instead.

        Raises:
            FailedPrecondition: it is in use.
        """
        path = self._disk.source
        try:
            exclusive = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise FailedPrecondition(f"disk {path} cannot be opened: {error.strerror}") from error
            raise FailedPrecondition(
                f"disk {path} is in use on this host",
                hint="it or a partition of it is mounted, or another program or sandbox writes to it",
            ) from error
        os.close(self.fd)
        self.fd = exclusive

    def bypass_page_cache(self) -> None:
        """Set O_DIRECT: QEMU since 9.1 takes a descriptor only if it was opened in the way that the disk is used.

        Raises:
            FailedPrecondition: its file system does not support that.
        """
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) | os.O_DIRECT)
        except OSError as error:
            raise FailedPrecondition(
                f"disk {self._disk.source} cannot bypass the page cache: {error.strerror}",
                hint="set block_device_cache_direct to false and block_device_aio to threads",
            ) from error

    def close(self) -> None:
        """Close it, if it is open."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
