"""Disks of a container: block devices and disk images that the guest gets as disks of its own.

    linux.devices of type b          a disk, and the container's device node
    a bind of a block device         the same, at the bind's destination
    a mount of a block device        a disk, mounted in the guest and bound into the container
    a bind of a direct volume        the same (`kata.runtime.storage.direct_volume`)
    a rootfs on a block device       a disk, mounted in the guest: the container's root
    a rootfs of layers               a disk for each, and one that is written to: an overlay in the guest is the root

An image file counts if its mount has the option "loop", as for mount(8). The plan is a pure function of the spec and of
what its paths lead to (`kata.runtime.storage.host_paths`); `kata.runtime.devices.block` opens and plugs the disks.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kata.errors import FailedPrecondition, InvalidArgument, NotFound
from kata.oci.device_rules import allows_disk, allows_everything
from kata.oci.spec import Spec
from kata.runtime.storage import direct_volume
from kata.runtime.storage.container_files import GUEST_SHARED
from kata.runtime.storage.disk_mount import DISK_TYPES, GUEST_STORAGE, DiskMount
from kata.runtime.storage.exports import Export, Use
from kata.runtime.storage.host_paths import HostPath, HostView, RootfsMount, is_bind
from kata.runtime.storage.kubernetes_volumes import GuestStorage

#: Major numbers (the kernel's Documentation/admin-guide/devices.txt).
_FLOPPY, _LOOP, _CDROM = 2, 7, 11
#: The number of /dev/loop-control, and how many loop devices Debian's kernel has at first.
_LOOP_CONTROL = (10, 237)
_LOOPS = 8


@dataclass(frozen=True)
class HostUpper:
    """The upper and work directory of an overlay on the host, which the guest's overlay gets.

    Attributes:
        directory: that both are in.
        upper, work: their names in it.
    """

    directory: str
    upper: str
    work: str


@dataclass(frozen=True)
class Layers:
    """A rootfs that is an overlay of read-only layers, each an erofs image on the host.

    Attributes:
        lower: the images, uppermost first.
        upper: where the container writes: an ext4 image that nobody reads afterwards, "" for the guest's memory, or a
            directory on the host.
    """

    lower: tuple[str, ...]
    upper: str | HostUpper = ""


@dataclass(frozen=True)
class Disk:
    """One disk of a container: mounted in the guest, or a device of the container.

    Attributes:
        source: block device or image file on the host.
        read_only: whether the guest cannot write to it.
        mount: how the guest mounts it, or None.
        container_path: path of its device node in the container, if it is not mounted.
        scratch: whether nobody reads it after the VM has ended, so that flushing it is a waste.
        layer: whether it is of a root of layers, where only its file system counts and not its size.
    """

    source: str
    read_only: bool
    mount: DiskMount | None = None
    container_path: str = ""
    scratch: bool = False
    layer: bool = False


@dataclass(frozen=True)
class DiskPlan:
    """The disks of a container.

    Attributes:
        disks: in the order in which they are plugged.
        spec: the container's, with the devices that the guest can have.
        root: where the guest mounts the container's rootfs, or "" if that is not on a disk.
        mounted: destinations of mounts that are on disks, with their path in the guest.
        volumes: paths of direct volumes, with the disk of each.
        storages: what the guest mounts once it has mounted the disks.
        uses: what that has of the shared tree.
        skipped: devices that are left out, with the reason, for the log.
    """

    disks: tuple[Disk, ...]
    spec: Spec
    root: str = ""
    mounted: Mapping[str, str] = field(default_factory=dict)
    volumes: Mapping[str, str] = field(default_factory=dict)
    storages: tuple[GuestStorage, ...] = ()
    uses: tuple[Use, ...] = ()
    skipped: tuple[str, ...] = ()


def plan_disks(
    container_id: str,
    spec: Spec,
    rootfs: Sequence[RootfsMount],
    host: HostView,
    *,
    token: Callable[[], str],
    layers: Layers | None = None,
    enabled: bool = True,
) -> DiskPlan:
    """Plan the disks of a container.

    Args:
        container_id: the container's.
        spec: its OCI spec, which is not changed.
        rootfs: mounts of its rootfs, from containerd.
        host: what the paths and devices of both are, from `look_at_paths`.
        token: makes hexadecimal digits that keep mount points apart, usually `random_token`.
        layers: what the rootfs is made of instead of `rootfs`.
        enabled: whether disks may be plugged at all (not `disable_block_device_use`).

    Raises:
        NotFound: a device does not exist.
        InvalidArgument: a device is no disk that a guest can have.
        FailedPrecondition: a direct volume needs a disk, and none may be plugged.
    """
    planner = _Planner(container_id, spec, host, token, enabled)
    if layers:
        planner.add_layers(layers)
    else:
        planner.add_root(rootfs)
    planner.add_mounts()
    planner.add_devices()
    return planner.result()


class _Planner:
    def __init__(
        self,
        container_id: str,
        spec: Spec,
        host: HostView,
        token: Callable[[], str],
        enabled: bool,
    ) -> None:
        self._what = f"container {container_id}"
        self._id = container_id
        self._spec = spec
        self._host = host
        self._token = token
        self._enabled = enabled
        self._volumes: dict[str, str] = {}
        self._disks: list[Disk] = []
        self._root = ""
        self._mounted: dict[str, str] = {}
        self._storages: list[GuestStorage] = []
        self._uses: list[Use] = []
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
        return DiskPlan(
            tuple(self._disks),
            edited,
            self._root,
            self._mounted,
            self._volumes,
            tuple(self._storages),
            tuple(self._uses),
            tuple(self._skipped),
        )

    def add_layers(self, layers: Layers) -> None:
        """Mount each layer, then an overlay of them, whose root is the container's."""
        base = f"{GUEST_STORAGE}/{self._id}-{self._token()}"
        lower = [f"{base}-{number}" for number in range(len(layers.lower))]
        for source, point in zip(layers.lower, lower, strict=True):
            self._disks.append(Disk(source, True, DiskMount(point, "erofs", ("ro",)), layer=True))
        written = f"{base}-upper"
        upper, work, create = f"{written}/upper", f"{written}/work", True
        if isinstance(layers.upper, HostUpper):
            name = f"{self._id}-{self._token()}-upper"
            self._uses.append(Use(Export(layers.upper.directory, name), write=True))
            upper, work = (f"{GUEST_SHARED}/{name}/{part}" for part in (layers.upper.upper, layers.upper.work))
            create = False
        elif layers.upper:
            # Made sparse, so that its tables are zero already.
            mount = DiskMount(written, "ext4", ("noinit_itable",))
            self._disks.append(Disk(layers.upper, False, mount, scratch=True, layer=True))
        else:
            self._storages.append(GuestStorage("ephemeral", "tmpfs", "tmpfs", ("mode=0700",), written))
        options = (f"lowerdir={':'.join(lower)}", f"upperdir={upper}", f"workdir={work}")
        made = (upper, work) if create else ()
        self._storages.append(GuestStorage("overlayfs", "overlay", "overlay", options, base, create=made))
        self._root = base

    def add_root(self, rootfs: Sequence[RootfsMount]) -> None:
        if self._enabled and len(rootfs) == 1 and self._is_disk(rootfs[0].type, rootfs[0].source, rootfs[0].options):
            self._root = self._mount(rootfs[0].source, rootfs[0].type, rootfs[0].options)

    def add_mounts(self) -> None:
        for mount in self._spec.get("mounts") or ():
            destination, source = str(mount.get("destination", "")), str(mount.get("source", ""))
            options = tuple(map(str, mount.get("options") or ()))
            bound = is_bind(mount)
            if bound and (volume := self._host.volumes.get(source)):
                self._mounted[destination] = self._mount_volume(source, volume)
            elif not self._enabled:
                continue
            elif bound and (found := self._host.paths.get(source)) and found.block:
                self._add_node(source, destination, found, found.block, read_only="ro" in options)
            elif not bound and self._is_disk(str(mount.get("type")), source, options):
                self._mounted[destination] = self._mount(source, str(mount.get("type")), options)

    def _add_node(
        self, source: str, destination: str, found: HostPath, number: tuple[int, int], *, read_only: bool
    ) -> None:
        """A bind of a device node makes it a device of the container, as it does with runc."""
        self._disks.append(Disk(source, read_only or self._is_read_only(number), container_path=destination))
        device = {"type": "b", "major": number[0], "minor": number[1]}
        self._devices.append({"path": destination, **device, "fileMode": stat.S_IMODE(found.mode)})
        self._rules.append({"allow": True, **device, "access": "r" if read_only else "rw"})
        self._mounted[destination] = ""

    def add_devices(self) -> None:
        linux: Mapping[str, Any] = self._spec.get("linux") or {}
        rules = (linux.get("resources") or {}).get("devices") or ()
        privileged = allows_everything(rules)
        # In a user namespace nodes cannot be made, only bound, and the guest has none before its driver is loaded.
        loops = privileged and not linux.get("uidMappings")
        for device in linux.get("devices") or ():
            if device.get("type") != "b":
                self._devices.append(device)
                continue
            number = int(device.get("major", 0)), int(device.get("minor", 0))
            path = str(device.get("path"))
            if loops and number[0] == _LOOP:
                self._devices.append(device)
                continue
            if not self._enabled or privileged:
                # A privileged container has every disk of the host in its spec. It gets the guest's, and none of these.
                self._skipped.append(f"device {path}: the guest has its own disks")
                continue
            node = self._host.disks.get(number)
            if node is None:
                raise NotFound(f"{self._what}: device {path} ({number[0]}:{number[1]}) does not exist on this host")
            if number[0] in (_FLOPPY, _CDROM):
                raise InvalidArgument(f"{self._what}: device {path} has removable media, which is not supported")
            access = "".join(str(rule.get("access", "")) for rule in rules if allows_disk(rule, number))
            read_only = node.read_only or (bool(access) and "w" not in access)
            self._disks.append(Disk(node.path, read_only, container_path=path))
            self._devices.append(device)
        if loops:
            self._add_loop_devices()

    def _add_loop_devices(self) -> None:
        """Give a privileged container the guest's loop devices, whatever the host has of its own.

        A container's /dev gets no nodes later. The guest loads the driver when one is opened.
        """
        present = {device.get("path") for device in self._devices}
        control = ("/dev/loop-control", "c", _LOOP_CONTROL)
        for path, kind, (major, minor) in (control, *((f"/dev/loop{i}", "b", (_LOOP, i)) for i in range(_LOOPS))):
            if path not in present:
                self._devices.append({"path": path, "type": kind, "major": major, "minor": minor, "fileMode": 0o660})

    def _is_disk(self, fstype: str, source: str, options: Sequence[str]) -> bool:
        if fstype not in DISK_TYPES or not source.startswith("/"):
            return False
        found = self._host.paths.get(source)
        return found is not None and (found.block is not None or ("loop" in options and found.is_file))

    def _is_read_only(self, number: tuple[int, int]) -> bool:
        return number in self._host.disks and self._host.disks[number].read_only

    def _mount(self, source: str, fstype: str, options: Sequence[str]) -> str:
        """Have the guest mount a disk; returns the path in the guest."""
        point = f"{GUEST_STORAGE}/{self._id}-{self._token()}"
        return self._add_mount(source, DiskMount(point, fstype, tuple(options)))

    def _mount_volume(self, path: str, volume: direct_volume.DirectVolume) -> str:
        """The same for a direct volume, which all containers of a pod share.

        Raises:
            FailedPrecondition: the configuration forbids disks.
        """
        if not self._enabled:
            raise FailedPrecondition(
                f"{self._what}: cannot plug the disk of direct volume {path}",
                hint="set disable_block_device_use to false in the configuration",
            )
        self._volumes[path] = volume.device
        return self._add_mount(volume.device, volume.mount)

    def _add_mount(self, source: str, mount: DiskMount) -> str:
        kept = [option for option in mount.options if option != "loop"]
        found = self._host.paths.get(source)
        read_only = "ro" in kept or bool(found and found.block and self._is_read_only(found.block))
        if read_only and "ro" not in kept:
            kept.append("ro")
        if mount.fstype == "xfs" and "nouuid" not in kept:
            # A snapshot has the UUID of its origin, and xfs refuses a second file system with the same UUID.
            kept.append("nouuid")
        self._disks.append(Disk(source, read_only, replace(mount, options=tuple(kept))))
        return mount.point
