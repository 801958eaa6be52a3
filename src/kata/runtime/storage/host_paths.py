"""A look at the host: what the paths and devices that a container's spec names lead to.

The plans of disks (`kata.runtime.storage.disk`) and of files (`kata.runtime.storage.container_files`) are
functions of what is found here. Nothing is changed and nothing stays open, so a path may lead elsewhere later: who acts
on a plan compares `HostPath.identity`, or opens the disk exclusively.

Reference: the kernel's Documentation/ABI/testing/sysfs-block.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kata.linux import mountinfo
from kata.oci.spec import Mount, Spec
from kata.runtime.storage import direct_volume
from kata.runtime.storage.kubernetes_volumes import (
    EMPTY_DIR,
    MAX_WATCHABLE_FILES,
    WATCHABLE,
    EmptyDir,
    plugin_of,
)

#: Where shared memory is expected (shm_overview(7)).
SHM = "/dev/shm"
#: Options of binds that are to receive what the host mounts in them later (mount_namespaces(7)).
RECEIVING = frozenset({"slave", "rslave", "shared", "rshared"})
#: Those of them whose own mounts are to reach the host.
SENDING = frozenset({"shared", "rshared"})

_SYS_BLOCK = "/sys/dev/block"


@dataclass(frozen=True)
class RootfsMount:
    """One mount of a rootfs as containerd requests it: `containerd.types.Mount`."""

    type: str
    source: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a file is in a file system, whatever mount shows it there.

    Attributes:
        filesystem: the file system, as the mount table names it: "8:1".
        path: from the root of the file system, as of now.
        mount: id of the mount that it is seen through.
        terms: options and propagation of that mount; through two mounts on the same terms a file is the same.
        submounts: what is mounted beneath it there, as relative paths.
    """

    filesystem: str
    path: str
    mount: int
    terms: str
    submounts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class HostPath:
    """What a path leads to, links followed.

    Attributes:
        identity: device and inode.
        mode: type and permissions, as stat(2) has them.
        place: where it is; None if the mount table does not say so.
        block: major and minor number, if it is a block device.
        empty_dir: what is there, if it is an emptyDir of Kubernetes.
        watchable: whether it is a volume that kubelet updates in place, with at most MAX_WATCHABLE_FILES files.
        engines_shm: whether it is shared memory that a container engine has made: a tmpfs named "shm".
    """

    identity: tuple[int, int]
    mode: int
    place: Place | None = None
    block: tuple[int, int] | None = None
    empty_dir: EmptyDir | None = None
    watchable: bool = False
    engines_shm: bool = False

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_socket(self) -> bool:
        """Whether it is a Unix socket."""
        return stat.S_ISSOCK(self.mode)

    @property
    def is_shareable(self) -> bool:
        """Whether it can be in the shared tree: a device or a FIFO cannot."""
        return stat.S_ISREG(self.mode) or stat.S_ISDIR(self.mode)


@dataclass(frozen=True)
class BlockNode:
    """A block device of the host.

    Attributes:
        path: its device node.
        read_only: whether the kernel refuses writes to it.
    """

    path: str
    read_only: bool


@dataclass(frozen=True)
class HostView:
    """What one container's spec and rootfs name on the host, at one moment.

    Attributes:
        paths: by root directory, source of a mount or device of a direct volume; without those that do not exist.
        disks: block devices by major and minor number.
        volumes: direct volumes by source of a bind.
        exports: where that is now which is in the shared tree, by its name there, from `look_at_exports`.
        private: sources of binds that are to receive the host's later mounts, and are on a mount that receives none.
    """

    paths: Mapping[str, HostPath] = field(default_factory=dict)
    disks: Mapping[tuple[int, int], BlockNode] = field(default_factory=dict)
    volumes: Mapping[str, direct_volume.DirectVolume] = field(default_factory=dict)
    exports: Mapping[str, Place] = field(default_factory=dict)
    private: frozenset[str] = frozenset()


def look_at_paths(
    spec: Spec,
    rootfs: Sequence[RootfsMount] = (),
    records: str = direct_volume.ROOT,
    *,
    rootfs_dir: str = "",
) -> HostView:
    """Look at everything that a spec and a rootfs name.

    Args:
        spec: the container's.
        rootfs: its mounts, from containerd.
        records: the directory of direct volumes.
        rootfs_dir: its root directory, if that is one already.

    Raises:
        InvalidArgument: the record of a direct volume is broken.
    """
    mounts: Iterable[Mount] = spec.get("mounts") or ()
    volumes = {}
    for mount in mounts:
        source = str(mount.get("source", ""))
        if is_bind(mount) and (volume := direct_volume.find(source, records)):
            volumes[source] = volume
    sources = [mount.source for mount in rootfs]
    sources += [str(mount.get("source", "")) for mount in mounts]
    sources += [volume.device for volume in volumes.values()]
    view = look_at_sources([rootfs_dir, *sources])
    numbers = {path.block for path in view.paths.values() if path.block} | set(_block_devices(spec))
    disks = {number: node for number in numbers if (node := _node(*number))}
    return replace(view, disks=disks, volumes=volumes, private=_private(mounts))


def look_at_sources(sources: Iterable[str]) -> HostView:
    """Look at paths, those of them that are absolute.

    Args:
        sources: the paths.
    """
    absolute = [source for source in sources if source.startswith("/")]
    if not absolute:
        return HostView()
    table = _MountTable()
    return HostView({source: found for source in absolute if (found := _look_at(source, table))})


def look_at_exports(shared_tree: str) -> dict[str, Place]:
    """Look at what is in the shared tree, in the mount namespace that has it; by its name there.

    Args:
        shared_tree: the directory of the shared tree.
    """
    return _MountTable().mounted_in(shared_tree)


def shm_size(spec: Spec) -> int:
    """Bytes of the shared memory that the container engine has made for a sandbox; 0 if it has made none.

    Args:
        spec: of the sandbox's first container.
    """
    for mount in spec.get("mounts") or ():
        source = str(mount.get("source", ""))
        if is_shm(mount) and is_bind(mount) and _mounted_shm(source):
            space = os.statvfs(source)
            return space.f_blocks * space.f_frsize
    return 0


def is_shm(mount: Mount) -> bool:
    """Whether it is the container's shared memory."""
    return os.path.normpath(str(mount.get("destination", ""))) == SHM


def random_token() -> str:
    """16 hexadecimal digits that nothing else on this host has."""
    return os.urandom(8).hex()


def is_bind(mount: Mount) -> bool:
    """Whether a mount of a spec is a bind, by its type or its options (runtime-spec, config.md, "Mounts")."""
    options = mount.get("options") or ()
    return mount.get("type") == "bind" or "bind" in options or "rbind" in options


class _MountTable:
    """The mount table of this process, arranged to be asked about places."""

    def __init__(self) -> None:
        mounts = mountinfo.read()
        self._by_id = {mount.id: mount for mount in mounts}
        # Of several at one point the last is on top.
        self._by_point = {mount.point: mount for mount in mounts}
        self._points = sorted(self._by_point)

    def place_of(self, fd: int) -> Place | None:
        """Where an open file is; None if the mount that it is on is out of sight."""
        path = os.readlink(f"/proc/self/fd/{fd}")
        mount = self._by_id.get(mountinfo.id_of(fd))
        if mount is None or not _is_beneath(path, mount.point):
            return None
        return self._place(mount, path)

    def mounted_in(self, directory: str) -> dict[str, Place]:
        """What is mounted in a directory, by relative path, without what is mounted beneath that."""
        directory = os.path.realpath(directory)
        places: dict[str, Place] = {}
        for point in self._below(directory):
            name = point[len(directory) + 1 :]
            if not any(outer in places for outer in prefixes(name)):
                places[name] = self._place(self._by_point[point], point)
        return places

    def _place(self, mount: mountinfo.Mount, path: str) -> Place:
        inside = os.path.normpath(os.path.join(mount.root, os.path.relpath(path, mount.point)))
        prefix = path.rstrip("/") + "/"
        submounts = frozenset(point[len(prefix) :] for point in self._below(path))
        return Place(mount.device, inside, mount.id, mount.terms, submounts)

    def _below(self, path: str) -> Iterator[str]:
        prefix = path.rstrip("/") + "/"
        for index in range(bisect_left(self._points, prefix), len(self._points)):
            if not self._points[index].startswith(prefix):
                return
            yield self._points[index]


def prefixes(path: str) -> Iterator[str]:
    """Each path that a relative path leads through, itself included: a, a/b, a/b/c."""
    names = path.split("/")
    return ("/".join(names[: count + 1]) for count in range(len(names)))


def _is_beneath(path: str, directory: str) -> bool:
    return f"{path}/".startswith(directory.rstrip("/") + "/")


def _private(mounts: Iterable[Mount]) -> frozenset[str]:
    sources = {
        str(mount.get("source", ""))
        for mount in mounts
        if is_bind(mount) and RECEIVING & set(mount.get("options") or ())
    }
    table = {mount.id: mount for mount in mountinfo.read()} if sources else {}
    found = set()
    for source in sources:
        try:
            on = table.get(mountinfo.mount_id(source))
        except (OSError, ValueError):
            continue  # it does not exist
        if on and not (on.shared or on.slave):
            found.add(source)
    return frozenset(found)


def _block_devices(spec: Spec) -> Iterable[tuple[int, int]]:
    linux: Mapping[str, Any] = spec.get("linux") or {}
    for device in linux.get("devices") or ():
        if device.get("type") == "b":
            yield int(device.get("major", 0)), int(device.get("minor", 0))


def _look_at(path: str, table: _MountTable) -> HostPath | None:
    plugin = plugin_of(path)
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            info, place = os.fstat(fd), table.place_of(fd)
        finally:
            os.close(fd)
        return HostPath(
            identity=(info.st_dev, info.st_ino),
            mode=info.st_mode,
            place=place,
            block=(os.major(info.st_rdev), os.minor(info.st_rdev)) if stat.S_ISBLK(info.st_mode) else None,
            empty_dir=_empty_dir(path, info) if plugin == EMPTY_DIR else None,
            watchable=plugin in WATCHABLE and stat.S_ISDIR(info.st_mode) and _has_few_files(path),
            engines_shm=plugin != EMPTY_DIR and _mounted_shm(path),
        )
    except (OSError, ValueError):
        return None  # it does not exist, as far as this process can see


def _mounted_shm(path: str) -> bool:
    if os.path.basename(path) != os.path.basename(SHM):
        return False
    mounted = mountinfo.mounted_at(path)
    return mounted is not None and mounted.fstype == "tmpfs"


def _empty_dir(path: str, info: os.stat_result) -> EmptyDir:
    mounted = mountinfo.mounted_at(path)
    space = os.statvfs(path)
    return EmptyDir(
        fstype=mounted.fstype if mounted else "",
        size=space.f_blocks * space.f_frsize,
        page_size=mounted.options.get("pagesize", "2M") if mounted else "",
        mode=stat.S_IMODE(info.st_mode),
        gid=info.st_gid,
    )


def _has_few_files(path: str) -> bool:
    files = 0
    for _, directories, names in os.walk(path):
        # os.walk counts links to directories, such as "..data", among the directories.
        files += len(names) + sum(1 for name in directories if name == "..data")
        if files > MAX_WATCHABLE_FILES:
            return False
    return True


def _node(major: int, minor: int) -> BlockNode | None:
    """A block device as the kernel names it; None if it does not exist."""
    directory = f"{_SYS_BLOCK}/{major}:{minor}"
    try:
        with open(f"{directory}/uevent", encoding="utf-8") as file:
            name = next(line[8:].strip() for line in file if line.startswith("DEVNAME="))
        with open(f"{directory}/ro", encoding="ascii") as file:
            return BlockNode(f"/dev/{name}", read_only=file.read().strip() == "1")
    except (OSError, StopIteration):
        return None
