"""The shared tree: the host directory that the guest mounts, with rootfs and volumes mounted into it.

    host   <state>/shared/<container>/rootfs            guest  /run/kata-containers/shared/containers/<container>/rootfs
           <state>/shared/<container>-<hex>-<name>             …/<container>-<hex>-<name>

`plan_container` is a pure function: the mounts that this takes, and what the container's spec says afterwards (Kata's
table of mounts). `SharedTree` carries a plan out and undoes it. The mounts are made in the sandbox's own mount
namespace, so that none of them can outlive it.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path

from kata.errors import FailedPrecondition, InvalidArgument, NotFound
from kata.linux import mount as linux
from kata.oci.spec import Mount
from kata.runtime.storage import kubernetes_volumes as kubernetes
from kata.runtime.storage.host_mounts import on_host
from kata.runtime.storage.host_paths import HostView, RootfsMount, is_bind, is_shm
from kata.runtime.storage.kubernetes_volumes import GuestStorage
from kata.runtime.storage.overlay import compact

#: Where the guest mounts the shared tree (Kata's path).
GUEST_SHARED = "/run/kata-containers/shared/containers"
#: The sandbox's /dev/shm in the guest: what containers have whose engine has made one for all of them.
GUEST_SHM = "/run/kata-containers/sandbox/shm"

#: Directory in the shared tree for `sandbox_bind_mounts` (Kata's name).
_SANDBOX_MOUNTS = "sandbox-mounts"
#: Options of /dev/shm that the bind of the sandbox's keeps; size and mode are the sandbox's.
_SHM_FLAGS = frozenset({"ro", "nosuid", "nodev", "noexec"})
#: Options that make a bind read-only, the second including the mounts beneath it.
_READ_ONLY = frozenset({"ro", "rro"})
#: File systems that need nothing of the host. If the guest's kernel lacks one, the guest refuses the container.
_GUEST_TYPES = frozenset(
    {"proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts", "tmpfs", "ramfs", "hugetlbfs", "debugfs", "tracefs"}
    | {"securityfs", "configfs", "bpf", "fusectl", "pstore", "binfmt_misc"}
)
#: Trees of the host's kernel: the guest has its own.
_GUEST_OWN = ("/proc", "/sys")
#: Bytes of a file's name.
_MAX_NAME = 255


@dataclass(frozen=True)
class Bind:
    """A host path that is bind-mounted into the shared tree.

    Attributes:
        source: absolute path on the host.
        name: path in the shared tree.
        readonly: whether the host refuses writes of the guest.
        readonly_below: whether it does so in mounts beneath the source, too.
        recursive: whether mounts beneath the source are included.
        identity: device and inode when this was planned; None for any.
    """

    source: str
    name: str
    readonly: bool = False
    readonly_below: bool = False
    recursive: bool = True
    identity: tuple[int, int] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ContainerPlan:
    """The files of one container.

    Attributes:
        container_id: the container's.
        rootfs: mounts of the rootfs, in order; empty if `rootfs_dir` is bound instead.
        rootfs_dir: a directory that is a rootfs already, or "".
        volumes: host paths to bind into the shared tree.
        mounts: the spec's mounts with sources in the guest, for the agent.
        storages: what the guest mounts first.
        skipped: mounts that are left out, with the reason, for the log.
        disk_root: where the guest mounts the rootfs, if that is a disk; nothing of it is shared then.
    """

    container_id: str
    rootfs: tuple[RootfsMount, ...]
    rootfs_dir: str
    volumes: tuple[Bind, ...] = ()
    mounts: tuple[Mount, ...] = ()
    storages: tuple[GuestStorage, ...] = ()
    skipped: tuple[str, ...] = field(default=())
    disk_root: str = ""

    @property
    def guest_rootfs(self) -> str:
        """The path of the rootfs in the guest."""
        return self.disk_root or f"{GUEST_SHARED}/{self.container_id}/rootfs"


def plan_container(
    container_id: str,
    mounts: Sequence[Mount],
    host: HostView,
    *,
    rootfs: Sequence[RootfsMount],
    rootfs_dir: str,
    token: Callable[[], str],
    disk_root: str = "",
    on_disk: Mapping[str, str] | None = None,
    pod_root: str = "",
    hugepages: Mapping[str, int] | None = None,
    guest_empty_dir: bool = False,
) -> ContainerPlan:
    """Plan a container's rootfs and each of its mounts.

    Args:
        container_id: the container's.
        mounts: the `mounts` of its OCI spec.
        host: what their sources lead to, from `look_at_paths`.
        rootfs: mounts of the rootfs, from containerd; may be empty.
        rootfs_dir: the spec's root path, absolute; used if `rootfs` is empty.
        token: makes hexadecimal digits that keep names apart, usually `random_token`.
        disk_root: where the guest mounts the rootfs, if it is a disk.
        on_disk: destinations of mounts of disks, with their path in the guest, "" if there is nothing to mount.
        pod_root: the pod's rootfs in the guest; "" for the container's own.
        hugepages: bytes of huge pages that the container may use, by page size ("2MB").
        guest_empty_dir: whether an emptyDir on disk becomes a directory of the guest, beside the pod's rootfs.

    Raises:
        NotFound: a bind's source does not exist.
        InvalidArgument: a bind's source is missing or relative, a volume of huge pages has no limit, or a file system
            is one that a guest cannot mount.
    """
    volumes: list[Bind] = []
    edited: list[Mount] = []
    storages: list[GuestStorage] = []
    skipped: list[str] = []
    pod_root = pod_root or disk_root or f"{GUEST_SHARED}/{container_id}/rootfs"
    for mount in mounts:
        destination = str(mount.get("destination", ""))
        source = str(mount.get("source", ""))
        options = [str(option) for option in mount.get("options", ())]
        found = host.paths.get(source)
        if on_disk and destination in on_disk:
            if on_disk[destination]:
                flags = [option for option in options if option in _READ_ONLY]
                edited.append({**mount, "type": "bind", "source": on_disk[destination], "options": ["rbind", *flags]})
        elif is_shm(mount) and is_bind(mount) and found and found.engines_shm:
            flags = [option for option in options if option in _SHM_FLAGS]
            edited.append({**mount, "type": "bind", "source": GUEST_SHM, "options": ["rbind", *flags]})
        elif not is_bind(mount):
            if mount.get("type") in _GUEST_TYPES:
                edited.append(mount)
            else:
                raise InvalidArgument(
                    f"mount on {destination}: a VM cannot mount the file system {mount.get('type')!r}",
                    hint="mount it on the host, and bind-mount that",
                )
        elif _is_beneath(source, _GUEST_OWN):
            skipped.append(f"mount of {source} on {destination}: the guest has its own")
        elif found and _is_beneath(destination, ("/dev",)) and not found.is_shareable:
            skipped.append(f"mount of {source} on {destination}: the guest has its own devices")
        else:
            if not source.startswith("/"):
                raise InvalidArgument(f"mount on {destination}: source {source!r} is not an absolute path")
            if found is None:
                raise NotFound(f"mount on {destination}: source {source} does not exist")
            if found.empty_dir and (
                instead := kubernetes.in_guest(
                    source, found.empty_dir, pod_root, hugepages or {}, on_disk=guest_empty_dir
                )
            ):
                storages.append(instead)
                edited.append({**mount, "type": "bind", "source": instead.point})
                continue
            name = _name(f"{container_id}-{token()}", destination)
            volumes.append(
                Bind(
                    source,
                    name,
                    readonly=any(option in _READ_ONLY for option in options),
                    readonly_below="rro" in options,
                    recursive="rbind" in options,
                    identity=found.identity,
                )
            )
            shared = f"{GUEST_SHARED}/{name}"
            if found.watchable:
                point = f"{kubernetes.GUEST_WATCHABLE}/{name}"
                storages.append(GuestStorage("watchable-bind", shared, "bind", ("bind",), point))
                shared = point
            if source in host.nested and "rro" not in options:
                # For the guest it is all one mount: only the host can tell those beneath from the one that is "ro".
                options = [option for option in options if option != "ro"]
            edited.append({**mount, "type": "bind", "source": shared, "options": options})
    return ContainerPlan(
        container_id,
        () if disk_root else tuple(rootfs),
        "" if rootfs or disk_root else rootfs_dir,
        tuple(volumes),
        tuple(edited),
        tuple(storages),
        tuple(skipped),
        disk_root,
    )


def _name(prefix: str, destination: str) -> str:
    """The name of a volume in the shared tree, which ends like the path that the container has it at."""
    base = os.path.basename(os.path.normpath(destination)) or "root"
    room = _MAX_NAME - len(prefix) - 1
    # Not in the middle of a character.
    return f"{prefix}-{base.encode()[-room:].decode(errors='ignore')}"


def plan_sandbox_mounts(paths: Sequence[str]) -> tuple[Bind, ...]:
    """The binds of `sandbox_bind_mounts`: "/path", "/path:ro" or "/path:rw".

    Raises:
        InvalidArgument: two have the same name, or one has none.
    """
    binds: dict[str, Bind] = {}
    for path in paths:
        source, separator, mode = path.rpartition(":")
        if not separator or mode not in ("ro", "rw"):
            source, mode = path, "ro"
        name = f"{_SANDBOX_MOUNTS}/{os.path.basename(source.rstrip('/'))}"
        if name in binds or name.endswith("/"):
            raise InvalidArgument(f"sandbox_bind_mounts: the name of {source} is empty or already in use")
        binds[name] = Bind(source, name, readonly=mode == "ro", readonly_below=mode == "ro")
    return tuple(binds.values())


def _is_beneath(path: str, roots: Sequence[str]) -> bool:
    normal = os.path.normpath(path)
    return any(normal == root or normal.startswith(root + "/") for root in roots)


class SharedTree:
    """The shared tree of one sandbox, in a mount namespace of its own.

    Args:
        directory: the host directory; created if it does not exist.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._mounted: dict[str, list[str]] = {}
        self._points: dict[str, list[str]] = {}
        # Containers are added and removed in threads, and a mount may change the working directory, which is all
        # threads'.
        self._lock = threading.RLock()

    def add(self, plan: ContainerPlan) -> None:
        """Mount a container's files; after an error, nothing is mounted.

        Raises:
            NotFound: a path does not exist any more.
            FailedPrecondition: a mount failed, or a path was replaced since it was planned.
        """
        with self._lock:
            try:
                self._add_rootfs(plan)
                for volume in plan.volumes:
                    self._bind(plan.container_id, volume)
            except BaseException:
                self.remove(plan.container_id)
                raise

    def add_sandbox_mounts(self, paths: Sequence[str]) -> None:
        """Mount the `sandbox_bind_mounts` of the configuration, for as long as the tree exists.

        Raises:
            NotFound, FailedPrecondition: one does not exist, or cannot be mounted.
            InvalidArgument: two have the same name.
        """
        binds = plan_sandbox_mounts(paths)
        for bind in binds:
            self._bind(_SANDBOX_MOUNTS, bind)

    def _add_rootfs(self, plan: ContainerPlan) -> None:
        name = f"{plan.container_id}/rootfs"
        if plan.disk_root:
            return
        if not plan.rootfs:
            if not on_host(os.path.isdir, plan.rootfs_dir):
                raise NotFound(f"container {plan.container_id}: rootfs {plan.rootfs_dir} is not a directory")
            self._bind(plan.container_id, Bind(plan.rootfs_dir, name))
            return
        target = self.directory / name
        target.mkdir(mode=0o755, parents=True)
        for mount in plan.rootfs:
            self._mount(plan.container_id, mount.source, str(target), mount.type, mount.options)

    def _bind(self, container_id: str, bind: Bind) -> None:
        """Bind-mount a path through a descriptor of the mount, so that what is checked is what is mounted.

        Raises:
            NotFound: the path does not exist, or is not accessible.
            FailedPrecondition: it was replaced after the plan was made, or the kernel refuses the mount.
        """
        target = self.directory / bind.name
        try:
            tree = on_host(linux.clone_tree, bind.source, bind.recursive)
        except OSError as error:
            raise NotFound(f"container {container_id}: cannot share {bind.source}: {error.strerror}") from error
        try:
            info = os.fstat(tree)
            if bind.identity not in (None, (info.st_dev, info.st_ino)):
                raise FailedPrecondition(
                    f"container {container_id}: {bind.source} was replaced while the container was being created",
                    hint="nothing of it was shared; create the container again",
                )
            target.parent.mkdir(mode=0o755, exist_ok=True)
            self._points.setdefault(container_id, []).append(str(target))
            if stat.S_ISDIR(info.st_mode):
                target.mkdir(mode=0o755)
            else:
                target.touch(mode=0o600)
            linux.attach(tree, str(target))
            self._mounted.setdefault(container_id, []).append(str(target))
            # It has come as a peer of the host's mount: only the host's mounts are to be seen here, and none there.
            linux.set_propagation(str(target), linux.MS_SLAVE | linux.MS_REC)
            if bind.readonly:
                linux.make_read_only(str(target), recursive=bind.readonly_below)
        except OSError as error:
            raise FailedPrecondition(
                f"container {container_id}: cannot bind {bind.source} in the shared tree: {error}"
            ) from error
        finally:
            os.close(tree)

    def _mount(self, container_id: str, source: str, target: str, kind: str, options: Sequence[str]) -> None:
        flags, propagation, data = linux.parse_options(options)
        try:
            if flags & linux.MS_BIND:
                linux.bind(source, target, flags)
            else:
                directory, data = compact(data)
                with chdir(directory or "."):
                    linux.mount(source, target, kind, flags, data)
            self._mounted.setdefault(container_id, []).append(target)
            if flags & linux.MS_BIND:
                linux.restrict(target, flags)
            if propagation:
                linux.set_propagation(target, propagation)
        except OSError as error:
            raise FailedPrecondition(
                f"container {container_id}: cannot mount {source} ({kind}) in the shared tree: {error}"
            ) from error

    def remove(self, container_id: str) -> None:
        """Unmount a container's files and remove their mount points. Idempotent."""
        with self._lock:
            for target in reversed(self._mounted.pop(container_id, [])):
                linux.umount(target)
            rootfs = self.directory / container_id / "rootfs"
            for path in dict.fromkeys([*self._points.pop(container_id, []), str(rootfs), str(rootfs.parent)]):
                self._remove_mount_point(path)

    @staticmethod
    def _remove_mount_point(path: str) -> None:
        try:
            os.rmdir(path)
        except NotADirectoryError:
            os.unlink(path)
        except FileNotFoundError:
            pass
