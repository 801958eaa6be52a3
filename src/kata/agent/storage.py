"""Storages: mounts that the host asks for, shared between containers by mount point, unmounted with the last user.

The host names mount points below the agent's base directory only. Some lie in directories that containers can write
to, so every path is walked without following a symbolic link, and mounts are made on the directory found so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from kata.agent.devices.find import NAMED, PLACED
from kata.agent.flush import flush
from kata.agent.paths import Paths
from kata.agent.reserve import Reserve
from kata.agent.watchable import TMPFS_OPTIONS, Copy, TooLarge, Watcher
from kata.errors import FailedPrecondition, InvalidArgument, NotFound
from kata.linux import mount as mounts
from kata.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, open_directory, openat2, relative_parts
from kata.linux.syncfs import syncfs
from kata.loop.off import off_loop

if TYPE_CHECKING:
    from kata.protocols import agent_pb2

log = logging.getLogger(__name__)

_OVERLAY_RW = "io.katacontainers.fs-opt.overlay-rw"
_OVERLAY_CREATE = "io.katacontainers.volume.overlayfs.create_directory="
_HUGEPAGES = "/sys/kernel/mm/hugepages"
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_ON_ROOT_MISMATCH = 1


class Storages:
    """The mounts of a sandbox. A mount point's first `acquire` mounts, its last `release` unmounts.

    Both may take minutes, and block nobody who does not need that mount point.

    Args:
        paths: where the agent keeps things.
        reserve: limits the sizes of what is mounted in memory.
    """

    def __init__(self, paths: Paths, reserve: Reserve | None = None) -> None:
        self._paths = paths
        self._reserve = reserve or Reserve()
        self._promised: dict[str, int] = {}
        self._users: dict[str, int] = {}
        #: Of mount points that are being mounted or unmounted: the lock, and how many have it or wait for it.
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self._mounted: set[str] = set()
        #: Of `_mounted` what the host has: its directories, and disks that are kept.
        self._directories: set[str] = set()
        self._disks: set[str] = set()
        self._drivers: dict[str, Callable[[agent_pb2.Storage, str, str], None]] = {
            "9p": self._filesystem,
            "virtio-fs": self._filesystem,
            **dict.fromkeys((*PLACED, *NAMED), self._disk),
            "ephemeral": self._ephemeral,
            "local": self._local,
            "overlayfs": self._overlay,
            "bind": self._bind,
            "watchable-bind": self._watchable,
        }
        self._watcher = Watcher()

    @property
    def drivers(self) -> list[str]:
        """Names of the supported drivers."""
        return sorted(self._drivers)

    async def acquire(self, requests: Iterable[agent_pb2.Storage], owner: str) -> list[str]:
        """Mount each storage, or count one more user of it; all of them or none.

        Args:
            requests: as the host sent them, disks with their device nodes as sources.
            owner: id of the container, "" for the sandbox.

        Returns:
            The mount points to release.

        Raises:
            InvalidArgument: unknown driver, invalid options, or a path outside of the base directory.
            FailedPrecondition: a mount failed.
        """
        held: list[str] = []
        try:
            for request in requests:
                point = self._inside(request.mount_point)
                async with self._alone(point):
                    if point not in self._users:
                        try:
                            await off_loop(self._mount, request, point, owner)
                        except BaseException:
                            # Also what has been mounted after the caller was cancelled.
                            await off_loop(self._unmount, point)
                            raise
                        self._users[point] = 0
                    self._users[point] += 1
                # One that is shared with later containers lives as long as the sandbox.
                if not (request.shared and owner):
                    held.append(point)
        except BaseException:
            await self.release(held)
            raise
        return held

    async def release(self, points: Sequence[str]) -> None:
        """Give back what `acquire` returned, last first. Raises OSError after all have been tried."""
        async with contextlib.AsyncExitStack() as stack:
            # A stack, so that one failed unmount does not keep the others.
            for point in points:
                stack.push_async_callback(self._release, point)

    async def _release(self, point: str) -> None:
        async with self._alone(point):
            self._users[point] -= 1
            if not self._users[point]:
                del self._users[point]
                await off_loop(self._unmount, point)

    async def release_all(self) -> None:
        """Unmount everything: the sandbox ends. Raises OSError after all have been tried."""
        async with contextlib.AsyncExitStack() as stack:
            for point in self._users:
                stack.push_async_callback(off_loop, self._unmount, point)
            self._users.clear()

    async def flush(self) -> bool:
        """Have what was written to directories and disks of the host there, for as long as that gets on.

        Returns:
            Whether all of it is; what is not is logged.
        """
        points = sorted(self._directories | self._disks)
        left = list(points)
        if points and not await flush(partial(self._flush, points, left)):
            log.error("what was written last is not on the host: %s", ", ".join(left))
        return not left

    def _flush(self, points: Iterable[str], left: list[str]) -> None:
        for point in points:
            try:
                with self._directory(point) as directory:
                    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    syncfs(fd)
                finally:
                    os.close(fd)
                left.remove(point)
            except OSError as error:
                log.error("what was written to %s is not on the host: %s", point, error.strerror)

    @contextlib.asynccontextmanager
    async def _alone(self, point: str) -> AsyncIterator[None]:
        """Have a mount point for oneself: who comes meanwhile waits, and finds it mounted or not."""
        lock, users = self._locks.get(point) or (asyncio.Lock(), 0)
        self._locks[point] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(point)
            if users > 1:
                self._locks[point] = lock, users - 1

    @contextlib.contextmanager
    def at(self, point: str) -> Iterator[str]:
        """The mount at a mount point, as a path that is valid within the block.

        Raises:
            InvalidArgument: the path is outside of the base directory.
            NotFound: no storage is mounted there.
        """
        point = self._inside(point)
        if point not in self._users:
            raise NotFound(f"no storage is mounted at {point}")
        with self._directory(point) as directory:
            yield directory

    def _mount(self, request: agent_pb2.Storage, point: str, owner: str) -> None:
        driver = self._drivers.get(request.driver)
        if driver is None:
            raise InvalidArgument(f"storage {point}: unknown driver {request.driver!r}")
        try:
            driver(request, point, owner)
            if request.HasField("fs_group"):
                self._give_to_group(point, request.fs_group, "ro" in request.options)
        except OSError as error:
            raise FailedPrecondition(f"cannot mount storage {request.driver} at {point}: {error.strerror}") from error

    def _unmount(self, point: str) -> None:
        self._watcher.remove(point)
        self._reserve.give_back(self._promised.pop(point, 0))
        if point in self._mounted:
            for points in (self._mounted, self._directories, self._disks):
                points.discard(point)
            parent, name = os.path.split(point)
            with self._directory(parent) as directory:
                mounts.umount(f"{directory}/{name}")

    def _inside(self, path: str) -> str:
        """Return the normal form of a path below the base directory.

        Raises:
            InvalidArgument: it is not below it.
        """
        try:
            parts = relative_parts(path)
        except ValueError as error:
            raise InvalidArgument(f"storage: {error}") from error
        point = "/" + "/".join(parts)
        if not path.startswith("/") or not point.startswith(self._paths.base + "/"):
            raise InvalidArgument(f"storage path {path!r} is not below {self._paths.base}")
        return point

    @contextlib.contextmanager
    def _directory(self, path: str, *, create: bool = False) -> Iterator[str]:
        """A directory below the base, reached without a symbolic link, as a path that is valid within the block."""
        fd = self._open(path, create=create)
        try:
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _found(self, path: str) -> Iterator[str]:
        """Whatever is at a path below the base, reached without a symbolic link, as a path valid within the block."""
        parent, name = os.path.split(path)
        with self._directory(parent) as directory:
            above = os.open(directory, os.O_PATH | os.O_CLOEXEC)
        try:
            fd = openat2(above, name, os.O_PATH, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
        finally:
            os.close(above)
        try:
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)

    def _open(self, path: str, *, create: bool = False) -> int:
        """Open a directory below the base, no symbolic link on the way."""
        base = os.open(self._paths.base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return open_directory(base, path[len(self._paths.base) + 1 :], create_mode=0o755 if create else None)
        finally:
            os.close(base)

    def _mount_at(self, source: str, point: str, fstype: str, options: Iterable[str]) -> None:
        parsed = mounts.parse_options(options)
        with self._directory(point, create=True) as target:
            mounts.mount(source, target, fstype, parsed.flags, parsed.data)
        self._mounted.add(point)
        if parsed.propagation:
            with self._directory(point) as mounted:
                mounts.set_propagation(mounted, parsed.propagation)

    def _filesystem(self, request: agent_pb2.Storage, point: str, owner: str) -> None:
        """9p and virtio-fs: `source` is the device's tag."""
        self._mount_at(request.source, point, request.fstype, request.options)
        self._directories.add(point)

    def _disk(self, request: agent_pb2.Storage, point: str, owner: str) -> None:
        """A disk: `source` is its device node in the guest. It is never formatted.

        Raises:
            InvalidArgument: the file system type is missing.
        """
        if not request.fstype:
            raise InvalidArgument(f"storage {point}: file system type is missing")
        self._mount_at(request.source, point, request.fstype, request.options)
        if "ro" not in request.options:
            self._disks.add(point)

    def _ephemeral(self, request: agent_pb2.Storage, point: str, owner: str) -> None:
        """Memory: a tmpfs, or huge pages, which have to be reserved first."""
        options = list(request.options)
        group = _take_group(options)
        if request.fstype == "hugetlbfs":
            _reserve_hugepages(options)
            self._reserve.refresh()
        else:
            options, self._promised[point] = self._reserve.fit(options)
        self._mount_at(request.source or "tmpfs", point, request.fstype or "tmpfs", options)
        if group is not None:
            with self._directory(point) as mounted:
                os.chown(mounted, -1, group)
                os.chmod(mounted, stat.S_IMODE(os.stat(mounted).st_mode) | stat.S_ISGID)

    def _local(self, request: agent_pb2.Storage, point: str, owner: str) -> None:
        """A directory on a file system that is already mounted.

        Raises:
            InvalidArgument: an option is malformed.
        """
        options = list(request.options)
        group = _take_group(options)
        mode = next((option[5:] for option in options if option.startswith("mode=")), "0777")
        try:
            bits = int(mode, 8) | (stat.S_ISGID if group is not None else 0)
        except ValueError as error:
            raise InvalidArgument(f"storage {point}: invalid mode {mode!r}") from error
        with self._directory(point, create=True) as directory:
            if group is not None:
                os.chown(directory, -1, group)
            os.chmod(directory, bits & 0o7777)

    def _overlay(self, request: agent_pb2.Storage, point: str, owner: str) -> None:
        """An overlay; the upper and work directory of a writable one are in the container's bundle."""
        options = list(request.options)
        if _OVERLAY_RW in options:
            options.remove(_OVERLAY_RW)
            for name in ("upper", "work"):
                directory = f"{self._paths.base}/{owner or 'sandbox'}/{name}"
                with self._directory(directory, create=True):
                    pass
                options.append(f"{name}dir={directory}")
        for option in request.driver_options:
            if option.startswith(_OVERLAY_CREATE):
                with self._directory(self._inside(option.removeprefix(_OVERLAY_CREATE)), create=True):
                    pass
        if request.driver_options:
            self._adopt_root(options)
        self._mount_at("overlay", point, "overlay", options)
        if request.driver_options:
            # Begun with nothing, for one container: nobody reads it afterwards.
            self._disks -= {disk for disk in self._disks if f"upperdir={disk}/" in ",".join(options)}

    def _adopt_root(self, options: Iterable[str]) -> None:
        """Give a new upper directory the owner and mode of the uppermost layer's root: the overlay has those."""
        values = dict(option.split("=", 1) for option in options if "=" in option)
        if "lowerdir" not in values or "upperdir" not in values:
            return
        lower, upper = self._inside(values["lowerdir"].split(":")[0]), self._inside(values["upperdir"])
        with self._directory(lower) as below, self._directory(upper) as above:
            info = os.stat(below)
            os.chown(above, info.st_uid, info.st_gid)
            os.chmod(above, stat.S_IMODE(info.st_mode))

    def _bind(self, request: agent_pb2.Storage, point: str, owner: str) -> None:
        """A bind mount of another directory or file below the base."""
        parsed = mounts.parse_options(request.options)
        with self._found(self._inside(request.source)) as source:
            self._make_like(source, point)
            with self._found(point) as target:
                mounts.bind(source, target, parsed.flags & mounts.MS_REC)
        self._mounted.add(point)
        # Only now does the path lead to the new mount, which flags and propagation are for.
        with self._found(point) as mounted:
            mounts.restrict(mounted, parsed.flags)
            if parsed.propagation:
                mounts.set_propagation(mounted, parsed.propagation)

    def _make_like(self, source: str, point: str) -> None:
        """Make a mount point: a directory, or an empty file for anything else."""
        if os.path.isdir(source):
            with self._directory(point, create=True):
                return
        parent, name = os.path.split(point)
        with self._directory(parent, create=True) as directory:
            flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            os.close(os.open(f"{directory}/{name}", flags, 0o600))

    def _watchable(self, request: agent_pb2.Storage, point: str, owner: str) -> None:
        """A directory that the host updates: a copy that follows it, or a bind mount if it is too large for that."""
        self._mount_at("tmpfs", point, "tmpfs", TMPFS_OPTIONS)
        with contextlib.ExitStack() as undo:
            source = self._open(self._inside(request.source))
            undo.callback(os.close, source)
            copy = Copy(source, self._open(point))
            undo.pop_all()
            undo.callback(copy.close)
            try:
                copy.update()
            except TooLarge as error:
                log.info(
                    "%s is bind-mounted, and inotify will not report its updates: %s",
                    request.source,
                    error,
                )
            else:
                self._watcher.add(point, copy)
                undo.pop_all()
                return
        self._unmount(point)
        self._bind(request, point, owner)

    def _give_to_group(self, point: str, group: agent_pb2.FSGroup, read_only: bool) -> None:
        """Give a volume to a group, as Kubernetes' fsGroup asks: setgid directories, group-accessible files."""
        with self._directory(point) as path:
            if group.group_change_policy == _ON_ROOT_MISMATCH and os.stat(path).st_gid == group.group_id:
                return
            wanted = 0o440 if read_only else 0o660
            for _, _, files, directory in os.fwalk(f"{path}/."):
                os.fchown(directory, -1, group.group_id)
                os.fchmod(directory, stat.S_IMODE(os.fstat(directory).st_mode) | wanted | 0o110 | stat.S_ISGID)
                for name in files:
                    os.chown(name, -1, group.group_id, dir_fd=directory, follow_symlinks=False)
                    mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
                    if stat.S_ISREG(mode):
                        os.chmod(name, stat.S_IMODE(mode) | wanted, dir_fd=directory)


def _take_group(options: list[str]) -> int | None:
    """Remove "fsgid=N", which no file system understands, from the options; return N.

    Raises:
        InvalidArgument: N is not a number.
    """
    for option in options:
        if option.startswith("fsgid="):
            options.remove(option)
            value = option.removeprefix("fsgid=")
            if not value.isdecimal():
                raise InvalidArgument(f"invalid storage option {option!r}: not a group id")
            return int(value)
    return None


def parse_size(text: str) -> int:
    """Parse "2097152", "2M", "2Mi" or "1G" into bytes.

    Raises:
        InvalidArgument: it is not a size.
    """
    digits = text.rstrip("kKmMgGtTiB")
    unit = text[len(digits) :].rstrip("B").removesuffix("i").lower()
    if not digits.isdecimal() or unit not in _SIZES:
        raise InvalidArgument(f"invalid size {text!r}")
    return int(digits) * _SIZES[unit]


def _reserve_hugepages(options: Iterable[str]) -> None:
    """Reserve the pages for a mount with pagesize= and size= (Documentation/admin-guide/mm/hugetlbpage.rst).

    Raises:
        InvalidArgument: an option is missing or malformed, or the guest has no pages of that size.
        FailedPrecondition: the guest does not have that many.
    """
    values = dict(option.split("=", 1) for option in options if "=" in option)
    if "pagesize" not in values or "size" not in values:
        raise InvalidArgument("hugetlbfs storage needs the options pagesize and size")
    page = parse_size(values["pagesize"])
    pages = -(-parse_size(values["size"]) // max(page, 1))
    path = f"{_HUGEPAGES}/hugepages-{page // 1024}kB/nr_hugepages"
    if not os.path.exists(path):
        raise InvalidArgument(f"the guest has no huge pages of {values['pagesize']}")
    with open(path, "r+", encoding="ascii") as file:
        present = int(file.read())
        file.seek(0)
        file.write(str(present + pages))
    with open(path, encoding="ascii") as file:
        if int(file.read()) < present + pages:
            raise FailedPrecondition(f"the guest cannot reserve {pages} huge pages of {values['pagesize']}")
