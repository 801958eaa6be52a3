"""Storages: what the host asks to have mounted, shared between containers by mount point, unmounted with the last user.

The host names mount points below the agent's base directory only. Some lie in directories that containers can write
to, so every path is walked without following a symbolic link, and mounts are made on the directory so found.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from kata.agent.paths import Paths
from kata.errors import FailedPrecondition, InvalidArgument
from kata.linux import mount as mounts
from kata.linux.openat2 import open_directory, relative_parts

if TYPE_CHECKING:
    from kata.protocols import agent_pb2

_OVERLAY_RW = "io.katacontainers.fs-opt.overlay-rw"
_OVERLAY_CREATE = "io.katacontainers.volume.overlayfs.create_directory="
_HUGEPAGES = "/sys/kernel/mm/hugepages"
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_ON_ROOT_MISMATCH = 1


class Storages:
    """The mounts of a sandbox. A mount point's first `acquire` mounts, its last `release` unmounts."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._users: dict[str, int] = {}
        self._mounted: set[str] = set()
        self._drivers: dict[str, Callable[[agent_pb2.Storage, str, str], bool]] = {
            "9p": self._filesystem,
            "virtio-fs": self._filesystem,
            "ephemeral": self._ephemeral,
            "local": self._local,
            "overlayfs": self._overlay,
            "bind": self._bind,
        }

    @property
    def drivers(self) -> list[str]:
        """Names of the drivers that there are."""
        return sorted(self._drivers)

    def acquire(self, requests: Iterable[agent_pb2.Storage], owner: str) -> list[str]:
        """Mount each storage, or count one more user of it; all of them or none. Returns the mount points to release.

        Args:
            owner: id of the container, "" for the sandbox.

        Raises:
            InvalidArgument: unknown driver, or a path outside of the base directory.
            FailedPrecondition: the mount failed.
        """
        held: list[str] = []
        try:
            for request in requests:
                point = self._inside(request.mount_point)
                if point not in self._users:
                    self._mount(request, point, owner)
                    self._users[point] = 0
                self._users[point] += 1
                # One that is shared with containers to come lives as long as the sandbox.
                if not (request.shared and owner):
                    held.append(point)
        except BaseException:
            self.release(held)
            raise
        return held

    def release(self, points: Sequence[str]) -> None:
        """Give back what `acquire` returned, last first."""
        for point in reversed(points):
            self._users[point] -= 1
            if not self._users[point]:
                del self._users[point]
                self._unmount(point)

    def release_all(self) -> None:
        """Unmount everything: the sandbox is going."""
        for point in reversed(list(self._users)):
            del self._users[point]
            self._unmount(point)

    def _mount(self, request: agent_pb2.Storage, point: str, owner: str) -> None:
        driver = self._drivers.get(request.driver)
        if driver is None:
            raise InvalidArgument(f"storage for {point} has the unknown driver {request.driver!r}")
        try:
            mounted = driver(request, point, owner)
        except OSError as error:
            raise FailedPrecondition(f"cannot mount storage {request.driver} on {point}: {error.strerror}") from error
        if mounted:
            self._mounted.add(point)
        try:
            if request.HasField("fs_group"):
                self._give_to_group(point, request.fs_group, "ro" in request.options)
        except OSError as error:
            self._unmount(point)
            raise FailedPrecondition(f"cannot change the group of {point}: {error.strerror}") from error

    def _unmount(self, point: str) -> None:
        if point in self._mounted:
            self._mounted.discard(point)
            parent, name = os.path.split(point)
            fd = self._open(parent, create=False)
            try:
                mounts.umount(f"/proc/self/fd/{fd}/{name}")
            finally:
                os.close(fd)

    def _inside(self, path: str) -> str:
        """The normal form of a path below the base directory."""
        try:
            parts = relative_parts(path)
        except ValueError as error:
            raise InvalidArgument(f"storage: {error}") from error
        point = "/" + "/".join(parts)
        if not path.startswith("/") or not point.startswith(self._paths.base + "/"):
            raise InvalidArgument(f"storage path {path!r} is not below {self._paths.base}")
        return point

    def _open(self, path: str, *, create: bool, mode: int = 0o755) -> int:
        """A descriptor of a directory below the base, no symbolic link on the way."""
        base = os.open(self._paths.base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            relative = path[len(self._paths.base) + 1 :]
            return open_directory(base, relative, create_mode=mode if create else None)
        finally:
            os.close(base)

    def _mount_at(self, source: str, point: str, fstype: str, options: Iterable[str]) -> None:
        parsed = mounts.parse_options(options)
        fd = self._open(point, create=True)
        try:
            mounts.mount(source, f"/proc/self/fd/{fd}", fstype, parsed.flags, parsed.data)
        finally:
            os.close(fd)
        if parsed.propagation:
            mounts.set_propagation(point, parsed.propagation)

    def _filesystem(self, request: agent_pb2.Storage, point: str, owner: str) -> bool:
        """9p and virtio-fs: `source` is the device's tag."""
        self._mount_at(request.source, point, request.fstype, request.options)
        return True

    def _ephemeral(self, request: agent_pb2.Storage, point: str, owner: str) -> bool:
        """Memory: a tmpfs, or huge pages, which have to be set aside first."""
        options = list(request.options)
        group = _take_group(options)
        if request.fstype == "hugetlbfs":
            _reserve_hugepages(options)
        self._mount_at(request.source or "tmpfs", point, request.fstype or "tmpfs", options)
        if group is not None:
            os.chown(point, -1, group)
            os.chmod(point, stat.S_IMODE(os.stat(point).st_mode) | stat.S_ISGID)
        return True

    def _local(self, request: agent_pb2.Storage, point: str, owner: str) -> bool:
        """A directory on a file system that is there already."""
        options = list(request.options)
        group = _take_group(options)
        mode = next((option[5:] for option in options if option.startswith("mode=")), "0777")
        fd = self._open(point, create=True)
        try:
            os.chmod(f"/proc/self/fd/{fd}", int(mode, 8) | (stat.S_ISGID if group is not None else 0))
            if group is not None:
                os.chown(f"/proc/self/fd/{fd}", -1, group)
        except ValueError as error:
            raise InvalidArgument(f"storage {point} has the bad mode {mode!r}") from error
        finally:
            os.close(fd)
        return False

    def _overlay(self, request: agent_pb2.Storage, point: str, owner: str) -> bool:
        """Layers below, and for a writable one two directories in the container's bundle."""
        options = list(request.options)
        if _OVERLAY_RW in options:
            options.remove(_OVERLAY_RW)
            for name in ("upper", "work"):
                directory = f"{self._paths.base}/{owner or 'sandbox'}/{name}"
                os.close(self._open(directory, create=True))
                options.append(f"{name}dir={directory}")
        for option in request.driver_options:
            if option.startswith(_OVERLAY_CREATE):
                os.close(self._open(self._inside(option.removeprefix(_OVERLAY_CREATE)), create=True))
        self._mount_at("overlay", point, "overlay", options)
        return True

    def _bind(self, request: agent_pb2.Storage, point: str, owner: str) -> bool:
        """Another directory below the base, at a second place."""
        parsed = mounts.parse_options(request.options)
        source = self._open(self._inside(request.source), create=False)
        try:
            target = self._open(point, create=True)
            try:
                mounts.bind(f"/proc/self/fd/{source}", f"/proc/self/fd/{target}", parsed.flags)
            finally:
                os.close(target)
        finally:
            os.close(source)
        if parsed.propagation:
            mounts.set_propagation(point, parsed.propagation)
        return True

    def _give_to_group(self, point: str, group: agent_pb2.FSGroup, read_only: bool) -> None:
        """Make a volume the group's, as Kubernetes' fsGroup asks: setgid directories, files that the group can use."""
        fd = self._open(point, create=False)
        try:
            path = f"/proc/self/fd/{fd}"
            if group.group_change_policy == _ON_ROOT_MISMATCH and os.stat(path).st_gid == group.group_id:
                return
            wanted = 0o440 if read_only else 0o660
            for _, _, files, directory in os.fwalk(path, follow_symlinks=False):
                os.fchown(directory, -1, group.group_id)
                os.fchmod(directory, stat.S_IMODE(os.fstat(directory).st_mode) | wanted | 0o110 | stat.S_ISGID)
                for name in files:
                    os.chown(name, -1, group.group_id, dir_fd=directory, follow_symlinks=False)
                    mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
                    if stat.S_ISREG(mode):
                        os.chmod(name, stat.S_IMODE(mode) | wanted, dir_fd=directory)
        finally:
            os.close(fd)


def _take_group(options: list[str]) -> int | None:
    """Remove "fsgid=N" from the options, where it is not the file system's to understand; returns N."""
    for option in options:
        if option.startswith("fsgid="):
            options.remove(option)
            value = option.removeprefix("fsgid=")
            if not value.isdecimal():
                raise InvalidArgument(f"storage option {option!r} has no group id")
            return int(value)
    return None


def parse_size(text: str) -> int:
    """Bytes of "2097152", "2M", "2Mi" or "1G".

    Raises:
        InvalidArgument: none of these.
    """
    digits = text.rstrip("kKmMgGtTiB")
    unit = text[len(digits) :].rstrip("B").removesuffix("i").lower()
    if not digits.isdecimal() or unit not in _SIZES:
        raise InvalidArgument(f"{text!r} is no size")
    return int(digits) * _SIZES[unit]


def _reserve_hugepages(options: Iterable[str]) -> None:
    """Have the kernel set aside as many pages as a mount with pagesize= and size= needs."""
    values = dict(option.split("=", 1) for option in options if "=" in option)
    if "pagesize" not in values or "size" not in values:
        raise InvalidArgument("storage of huge pages needs the options pagesize and size")
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
            raise FailedPrecondition(f"the guest cannot set aside {pages} huge pages of {values['pagesize']}")
