"""Disks: what of a container lies on a block device or in a disk image, which the guest gets as a disk of its own.

    linux.devices of type b          a disk, and the container's device node
    a bind of a block device         the same, at the bind's destination
    a mount of a block device        a disk, mounted in the guest and bound into the container
    a bind of a direct volume        the same (`kata.runtime.storage.direct_volume`)
    a rootfs on a block device       a disk, mounted in the guest: the container's root

An image file counts where its mount has the option "loop", as for mount(8). The decisions are made here, by looking at
the host without changing anything; a disk is opened and plugged by `kata.runtime.devices.block`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kata.errors import FailedPrecondition, InvalidArgument, NotFound
from kata.oci.device_rules import allows_disk, allows_everything
from kata.oci.spec import Spec
from kata.runtime.storage import direct_volume
from kata.runtime.storage.disk_mount import DISK_TYPES, GUEST_STORAGE, DiskMount
from kata.runtime.storage.shared_tree import RootfsMount

_SYS_BLOCK = "/sys/dev/block"
_FLOPPY, _CDROM = 2, 11


@dataclass(frozen=True)
class Disk:
    """One disk of a container: mounted in the guest, or a device of the container's.

    Attributes:
        source: block device or image file on the host.
        read_only: whether the guest can write to it.
        mount: how the guest mounts it, or None.
        container_path: of its device node, if it is not mounted.
    """

    source: str
    read_only: bool
    mount: DiskMount | None = None
    container_path: str = ""


@dataclass(frozen=True)
class DiskPlan:
    """What of a container is on disks.

    Attributes:
        spec: the container's, with devices that the guest can have.
        root: where the guest mounts the container's root, or "" if that is no disk.
        mounted: destinations of mounts that are on disks, with the path in the guest.
        volumes: paths of direct volumes, with the disk that each is on.
        skipped: what was left out, with the reason, for the log.
    """

    disks: tuple[Disk, ...]
    spec: Spec
    root: str = ""
    mounted: Mapping[str, str] = field(default_factory=dict)
    volumes: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


def plan_disks(
    container_id: str,
    spec: Spec,
    rootfs: Sequence[RootfsMount],
    *,
    enabled: bool = True,
    token: Callable[[], str] = lambda: os.urandom(8).hex(),
    node_of: Callable[[int, int], str | None] | None = None,
    volumes: str = direct_volume.ROOT,
) -> DiskPlan:
    """Decide which disks a container needs.

    Args:
        rootfs: what containerd hands over.
        enabled: whether disks may be plugged (`disable_block_device_use`); without, there are none.
        token: source of the 16 hexadecimal digits that keep mount points apart.
        node_of: the host's node of a device number; None for this host's.
        volumes: where direct volumes are recorded.

    Raises:
        NotFound: a device is not there.
        InvalidArgument: it is not a disk that a guest can have.
    """
    planner = _Planner(container_id, spec, enabled, token, node_of or find_node, volumes)
    planner.add_root(rootfs)
    planner.add_mounts()
    planner.add_devices()
    return planner.result()


class _Planner:
    def __init__(
        self,
        container_id: str,
        spec: Spec,
        enabled: bool,
        token: Callable[[], str],
        node_of: Callable[[int, int], str | None],
        volumes: str,
    ) -> None:
        self._what = f"container {container_id}"
        self._id = container_id
        self._spec = spec
        self._enabled = enabled
        self._token = token
        self._node_of = node_of
        self._records = volumes
        self._volumes: dict[str, str] = {}
        self._disks: list[Disk] = []
        self._root = ""
        self._mounted: dict[str, str] = {}
        self._devices: list[Any] = []
        self._rules: list[Any] = []
        self._skipped: list[str] = []

    def result(self) -> DiskPlan:
        spec = self._spec
        linux: dict[str, Any] = {**(spec.get("linux") or {})}
        if self._devices or linux.get("devices"):
            linux["devices"] = self._devices
        if self._rules:
            resources = {**(linux.get("resources") or {})}
            resources["devices"] = [*(resources.get("devices") or ()), *self._rules]
            linux["resources"] = resources
        edited: Any = {**spec, "linux": linux} if linux else spec
        return DiskPlan(tuple(self._disks), edited, self._root, self._mounted, self._volumes, tuple(self._skipped))

    def add_root(self, rootfs: Sequence[RootfsMount]) -> None:
        if self._enabled and len(rootfs) == 1 and self._is_disk(rootfs[0].type, rootfs[0].source, rootfs[0].options):
            self._root = self._mount(rootfs[0].source, rootfs[0].type, rootfs[0].options)

    def add_mounts(self) -> None:
        for mount in self._spec.get("mounts") or ():
            destination, source = str(mount.get("destination", "")), str(mount.get("source", ""))
            options = tuple(map(str, mount.get("options") or ()))
            bound = mount.get("type") == "bind" or "bind" in options or "rbind" in options
            if bound and (volume := direct_volume.find(source, self._records)):
                self._mounted[destination] = self._mount_volume(source, volume)
            elif not self._enabled:
                continue
            elif bound and (device := _block_device(source)):
                self._add_node(source, destination, device, read_only="ro" in options)
            elif not bound and self._is_disk(str(mount.get("type")), source, options):
                self._mounted[destination] = self._mount(source, str(mount.get("type")), options)

    def _add_node(self, source: str, destination: str, device: tuple[int, int], *, read_only: bool) -> None:
        """A bind of a device node makes it the container's device, as it does with runc."""
        self._disks.append(Disk(source, read_only or _is_read_only(*device), container_path=destination))
        number = {"type": "b", "major": device[0], "minor": device[1]}
        self._devices.append({"path": destination, **number, "fileMode": stat.S_IMODE(os.stat(source).st_mode)})
        self._rules.append({"allow": True, **number, "access": "r" if read_only else "rw"})
        self._mounted[destination] = ""

    def add_devices(self) -> None:
        linux: Mapping[str, Any] = self._spec.get("linux") or {}
        rules = (linux.get("resources") or {}).get("devices") or ()
        privileged = allows_everything(rules)
        for device in linux.get("devices") or ():
            if device.get("type") != "b":
                self._devices.append(device)
                continue
            number = int(device.get("major", 0)), int(device.get("minor", 0))
            path = str(device.get("path"))
            if not self._enabled or privileged:
                # A privileged container is given every disk that the host has; it gets the guest's, and none of these.
                self._skipped.append(f"device {path}: the guest has its own disks")
                continue
            node = self._node_of(*number)
            if node is None:
                raise NotFound(f"{self._what}: device {path} ({number[0]}:{number[1]}) does not exist on this host")
            if number[0] in (_FLOPPY, _CDROM):
                raise InvalidArgument(f"{self._what}: device {path} is a drive with removable media, which has no disk")
            access = "".join(str(rule.get("access", "")) for rule in rules if allows_disk(rule, number))
            read_only = _is_read_only(*number) or (bool(access) and "w" not in access)
            self._disks.append(Disk(node, read_only, container_path=path))
            self._devices.append(device)

    def _is_disk(self, fstype: str, source: str, options: Sequence[str]) -> bool:
        if fstype not in DISK_TYPES or not source.startswith("/"):
            return False
        return _block_device(source) is not None or ("loop" in options and os.path.isfile(source))

    def _mount(self, source: str, fstype: str, options: Sequence[str]) -> str:
        """Have the guest mount it; the path in the guest."""
        point = f"{GUEST_STORAGE}/{self._id}-{self._token()}"
        return self._add_mount(source, DiskMount(point, fstype, tuple(options)))

    def _mount_volume(self, path: str, volume: direct_volume.DirectVolume) -> str:
        """The same for a direct volume, which all containers of a pod have at one point."""
        if not self._enabled:
            raise FailedPrecondition(
                f"{self._what}: {path} is a direct volume", hint="disable_block_device_use keeps it from the guest"
            )
        self._volumes[path] = volume.device
        return self._add_mount(volume.device, volume.mount)

    def _add_mount(self, source: str, mount: DiskMount) -> str:
        kept = [option for option in mount.options if option != "loop"]
        device = _block_device(source)
        read_only = "ro" in kept or bool(device and _is_read_only(*device))
        if read_only and "ro" not in kept:
            kept.append("ro")
        if mount.fstype == "xfs" and "nouuid" not in kept:
            # Snapshots have the UUID of what they are of, and xfs refuses the second.
            kept.append("nouuid")
        self._disks.append(Disk(source, read_only, replace(mount, options=tuple(kept))))
        return mount.point


def find_node(major: int, minor: int) -> str | None:
    """The host's node of a block device by what the kernel calls it, or None if there is no such device."""
    try:
        with open(f"{_SYS_BLOCK}/{major}:{minor}/uevent", encoding="utf-8") as file:
            name = next(line[8:].strip() for line in file if line.startswith("DEVNAME="))
    except (OSError, StopIteration):
        return None
    return f"/dev/{name}"


def _block_device(path: str) -> tuple[int, int] | None:
    """Major and minor number, or None if the path leads to no block device."""
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        return None
    return (os.major(info.st_rdev), os.minor(info.st_rdev)) if stat.S_ISBLK(info.st_mode) else None


def _is_read_only(major: int, minor: int) -> bool:
    try:
        with open(f"{_SYS_BLOCK}/{major}:{minor}/ro", encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False
