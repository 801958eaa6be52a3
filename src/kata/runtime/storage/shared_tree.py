"""The shared tree: the host directory that the guest mounts, with rootfs and volumes mounted into it.

    host   <state>/shared/@<number>             guest  /run/kata-containers/shared/containers/@<number>
           <state>/shared/<container>/rootfs           …/<container>/rootfs
           <state>/shared/sandbox-mounts/<name>        …/sandbox-mounts/<name>

What is bound from the host is an export, there once for all who mount it (`kata.runtime.storage.exports`); a rootfs
that containerd describes by its mounts is its container's. `plan_container` is a pure function: the mounts that this
takes, and what the container's spec says afterwards (Kata's table of mounts). `SharedTree` carries a plan out and
undoes it. The mounts are made in the sandbox's own mount namespace, so that none of them can outlive it.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from kata.errors import FailedPrecondition, InvalidArgument, NotFound
from kata.linux import mount as linux
from kata.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2
from kata.oci.spec import Mount
from kata.runtime.storage import kubernetes_volumes as kubernetes
from kata.runtime.storage.exports import Export, Submounts, Use, Wanted, plan_uses
from kata.runtime.storage.host_mounts import on_host
from kata.runtime.storage.host_paths import HostPath, HostView, RootfsMount, is_bind, is_shm, look_at_sources
from kata.runtime.storage.kubernetes_volumes import GuestStorage
from kata.runtime.storage.overlay import compact

log = logging.getLogger(__name__)

#: Where the guest mounts the shared tree (Kata's path).
GUEST_SHARED = "/run/kata-containers/shared/containers"
#: The sandbox's /dev/shm in the guest: what containers have whose engine has made one for all of them.
GUEST_SHM = "/run/kata-containers/sandbox/shm"
#: Where the guest mounts parts of exports.
GUEST_PARTS = "/run/kata-containers/sandbox/parts"

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


_REPLACED = "{}: {} was replaced while the container was being created"
_REPLACED_HINT = "nothing of it was shared; create the container again"


@dataclass(frozen=True)
class ContainerPlan:
    """The files of one container.

    Attributes:
        container_id: the container's.
        guest_rootfs: the path of the rootfs in the guest.
        rootfs: mounts of the rootfs, in order; empty if it is an export or on a disk.
        uses: what it has of the exports: its rootfs, if that is a directory, and its mounts.
        mounts: the spec's mounts with sources in the guest, for the agent.
        storages: what the guest mounts first.
        skipped: mounts that are left out, with the reason, for the log.
        warnings: mounts that cannot do what they are probably for, for the log.
    """

    container_id: str
    guest_rootfs: str
    rootfs: tuple[RootfsMount, ...] = ()
    uses: tuple[Use, ...] = ()
    mounts: tuple[Mount, ...] = ()
    storages: tuple[GuestStorage, ...] = ()
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Decision:
    """What becomes of one mount of a spec.

    Attributes:
        mount: as the guest's spec has it; None if it is left out, or depends on where `shared` is.
        storage: what the guest mounts first.
        skipped: why it is left out.
        shared: its source, if that has to be in the shared tree.
    """

    mount: Mount | None = None
    storage: GuestStorage | None = None
    skipped: str = ""
    shared: HostPath | None = None


def plan_container(
    container_id: str,
    mounts: Sequence[Mount],
    host: HostView,
    *,
    rootfs: Sequence[RootfsMount],
    rootfs_dir: str,
    name: Callable[[], str],
    exports: Mapping[Export, bool] | None = None,
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
        name: makes names of exports, usually `SharedTree.new_name`.
        exports: those that the sandbox has already, and whether somebody may write to them.
        disk_root: where the guest mounts the rootfs, if it is a disk.
        on_disk: destinations of mounts of disks, with their path in the guest, "" if there is nothing to mount.
        pod_root: the pod's rootfs in the guest; "" for the container's own.
        hugepages: bytes of huge pages that the container may use, by page size ("2MB").
        guest_empty_dir: whether an emptyDir on disk becomes a directory of the guest, beside the pod's rootfs.

    Raises:
        NotFound: a bind's source does not exist, or the root is not a directory.
        InvalidArgument: a bind's source is missing or relative, a volume of huge pages has no limit, or a file system
            is one that a guest cannot mount.
    """
    known = dict(exports or {})
    uses: list[Use] = []
    storages: list[GuestStorage] = []
    guest_rootfs = disk_root or f"{GUEST_SHARED}/{container_id}/rootfs"
    if not rootfs and not disk_root:
        found = host.paths.get(rootfs_dir)
        if found and not found.is_directory:
            raise NotFound(f"container {container_id}: rootfs {rootfs_dir} is not a directory")
        uses = plan_uses([Wanted(rootfs_dir, found, write=True)], known, host.exports, name)
        known |= {use.export: True for use in uses}
        guest_rootfs, part = _in_guest(uses[0], f"{container_id}-root")
        storages += part

    own_volume = partial(
        kubernetes.in_guest, pod_root=pod_root or guest_rootfs, hugepages=hugepages or {}, on_disk=guest_empty_dir
    )
    decisions = [_decide(mount, host, on_disk or {}, own_volume) for mount in mounts]
    shared = [(mount, decision.shared) for mount, decision in zip(mounts, decisions, strict=True) if decision.shared]
    given = plan_uses([_wanted(mount, found) for mount, found in shared], known, host.exports, name)
    uses += given
    edited: list[Mount] = []
    left = iter(given)
    for index, (mount, decision) in enumerate(zip(mounts, decisions, strict=True)):
        if decision.storage:
            storages.append(decision.storage)
        if decision.mount:
            edited.append(decision.mount)
        elif decision.shared:
            through, before = _share(mount, decision.shared, next(left), f"{container_id}-{index}")
            edited.append(through)
            storages += before
    return ContainerPlan(
        container_id,
        guest_rootfs,
        rootfs=() if disk_root else tuple(rootfs),
        uses=tuple(uses),
        mounts=tuple(edited),
        storages=tuple(storages),
        skipped=tuple(decision.skipped for decision in decisions if decision.skipped),
        warnings=tuple(
            f"mount of {_source(mount)}: a Unix socket of the host, to which nobody in a VM can connect"
            for mount, found in shared
            if found.is_socket
        ),
    )


def _decide(
    mount: Mount,
    host: HostView,
    on_disk: Mapping[str, str],
    own_volume: Callable[[str, kubernetes.EmptyDir], GuestStorage | None],
) -> _Decision:
    """Say what becomes of a mount.

    Args:
        mount: of the spec.
        host: what its source leads to.
        on_disk: as of `plan_container`.
        own_volume: makes what the guest has instead of an emptyDir.

    Raises:
        NotFound: its source does not exist.
        InvalidArgument: it is one that a guest cannot have.
    """
    destination, source, options = str(mount.get("destination", "")), _source(mount), _options(mount)
    found = host.paths.get(source)
    if destination in on_disk:
        if not on_disk[destination]:
            return _Decision()
        return _Decision(_rebound(mount, on_disk[destination], _READ_ONLY))
    if is_shm(mount) and is_bind(mount) and found and found.engines_shm:
        return _Decision(_rebound(mount, GUEST_SHM, _SHM_FLAGS))
    if not is_bind(mount):
        if mount.get("type") in _GUEST_TYPES:
            return _Decision(mount)
        raise InvalidArgument(
            f"mount on {destination}: a VM cannot mount the file system {mount.get('type')!r}",
            hint="mount it on the host, and bind-mount that",
        )
    if _is_beneath(source, _GUEST_OWN):
        return _Decision(skipped=f"mount of {source} on {destination}: the guest has its own")
    if found and _is_beneath(destination, ("/dev",)) and not found.is_shareable:
        return _Decision(skipped=f"mount of {source} on {destination}: the guest has its own devices")
    if not source.startswith("/"):
        raise InvalidArgument(f"mount on {destination}: source {source!r} is not an absolute path")
    if found is None:
        raise NotFound(f"mount on {destination}: source {source} does not exist")
    if found.empty_dir and (storage := own_volume(source, found.empty_dir)):
        return _Decision({**mount, "type": "bind", "source": storage.point, "options": options}, storage)
    return _Decision(shared=found)


def _source(mount: Mount) -> str:
    return str(mount.get("source", ""))


def _options(mount: Mount) -> list[str]:
    return [str(option) for option in mount.get("options", ())]


def _rebound(mount: Mount, source: str, kept: frozenset[str]) -> Mount:
    """The mount with what the guest has at `source`, and only some of its options."""
    options = ["rbind", *(option for option in _options(mount) if option in kept)]
    return {**mount, "type": "bind", "source": source, "options": options}


def _wanted(mount: Mount, found: HostPath) -> Wanted:
    options = _options(mount)
    return Wanted(
        _source(mount),
        found,
        write=_READ_ONLY.isdisjoint(options),
        recursive="rbind" in options,
        readonly_below="rro" in options,
    )


def _share(mount: Mount, found: HostPath, use: Use, name: str) -> tuple[Mount, list[GuestStorage]]:
    """A mount whose source is in the shared tree, and what the guest mounts before it.

    Args:
        mount: as the spec has it.
        found: its source.
        use: of the export that has it.
        name: one that no other mount of the sandbox has.
    """
    options = _options(mount)
    if found.watchable:
        # One copy for all that watch it, unless it is a part of something else.
        point = f"{kubernetes.GUEST_WATCHABLE}/{name if use.part else use.export.name}"
        before = [GuestStorage("watchable-bind", f"{GUEST_SHARED}/{use.path}", "bind", ("bind",), point)]
    else:
        point, before = _in_guest(use, name)
    if use.export.submounts is Submounts.WRITABLE:
        # For the guest it is all one mount: only the host can tell those beneath from the one that is "ro".
        options = [option for option in options if option != "ro"]
    return {**mount, "type": "bind", "source": point, "options": options}, before


def _in_guest(use: Use, name: str) -> tuple[str, list[GuestStorage]]:
    """Where the guest has an export, or a part of one, and what it mounts for that.

    A part is mounted by the agent, which follows no symbolic link: its path leads through what containers write to.
    """
    shared = f"{GUEST_SHARED}/{use.path}"
    if not use.part:
        return shared, []
    point = f"{GUEST_PARTS}/{name}"
    return point, [GuestStorage("bind", shared, "bind", ("bind",), point)]


def plan_sandbox_mounts(paths: Sequence[str], host: HostView) -> tuple[Use, ...]:
    """The exports of `sandbox_bind_mounts`: "/path", "/path:ro" or "/path:rw".

    Args:
        paths: the setting.
        host: what they lead to, from `look_at_sources`.

    Raises:
        InvalidArgument: two have the same name, or one has none.
    """
    uses: dict[str, Use] = {}
    for path in paths:
        source, write = _sandbox_mount(path)
        name = f"{_SANDBOX_MOUNTS}/{os.path.basename(source.rstrip('/'))}"
        if name in uses or name.endswith("/"):
            raise InvalidArgument(f"sandbox_bind_mounts: the name of {source} is empty or already in use")
        wanted = Wanted(source, host.paths.get(source), write, readonly_below=not write)
        uses[name] = Use(wanted.export(name), write)
    return tuple(uses.values())


def _sandbox_mount(path: str) -> tuple[str, bool]:
    """The source of a sandbox mount, and whether it is writable."""
    source, separator, mode = path.rpartition(":")
    return (source, mode == "rw") if separator and mode in ("ro", "rw") else (path, False)


def _is_beneath(path: str, roots: Sequence[str]) -> bool:
    normal = os.path.normpath(path)
    return any(normal == root or normal.startswith(root + "/") for root in roots)


@dataclass
class _Held:
    """An export that somebody has.

    Attributes:
        users: ids of containers, and whether each may write to it.
        mounted: whether it is in the tree by now.
        readonly: whether the host refuses writes.
        fixed: whether that can change: not of what was read-only before.
    """

    export: Export
    users: dict[str, bool] = field(default_factory=dict)
    mounted: bool = False
    readonly: bool = False
    fixed: bool = False


class SharedTree:
    """The shared tree of one sandbox, in a mount namespace of its own.

    A container first claims what its plan uses, in one step with the planning, so that what the plan relies on stays.

    Args:
        directory: the host directory; created if it does not exist.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._mounted: dict[str, list[str]] = {}
        self._held: dict[str, _Held] = {}
        self._numbers = itertools.count()
        # Containers are added and removed in threads, and a mount may change the working directory, which is all
        # threads'.
        self._lock = threading.RLock()
        # Of `_held`, and never kept for long: the event loop takes it.
        self._table_lock = threading.Lock()

    def new_name(self) -> str:
        """A name for an export; no container has one like it, and none is used twice: the guest may remember it."""
        return f"@{next(self._numbers)}"

    def exports(self) -> dict[Export, bool]:
        """What is claimed, and whether somebody may write to it."""
        with self._table_lock:
            return {held.export: any(held.users.values()) for held in self._held.values()}

    def claim(self, plan: ContainerPlan) -> None:
        """Keep what a plan uses until `remove`, or announce it, if it is not there yet. Touches no file."""
        self._claim(plan.container_id, plan.uses)

    def _claim(self, owner: str, uses: Sequence[Use]) -> None:
        with self._table_lock:
            for use in uses:
                users = self._held.setdefault(use.export.name, _Held(use.export)).users
                users[owner] = users.get(owner, False) or use.write

    def add(self, plan: ContainerPlan) -> None:
        """Mount a container's files, which have been claimed; after an error, nothing is mounted or claimed.

        Raises:
            NotFound: a path does not exist any more.
            FailedPrecondition: a mount failed, or a path was replaced since it was planned.
        """
        with self._lock:
            try:
                if plan.rootfs:
                    self._add_rootfs(plan)
                for use in plan.uses:
                    self._provide(f"container {plan.container_id}", use)
            except BaseException:
                self.remove(plan.container_id)
                raise

    def add_sandbox_mounts(self, paths: Sequence[str]) -> None:
        """Mount the `sandbox_bind_mounts` of the configuration, for as long as the tree exists.

        Raises:
            NotFound, FailedPrecondition: one does not exist, or cannot be mounted.
            InvalidArgument: two have the same name.
        """
        host = on_host(look_at_sources, [_sandbox_mount(path)[0] for path in paths])
        uses = plan_sandbox_mounts(paths, host)
        self._claim(_SANDBOX_MOUNTS, uses)
        for use in uses:
            self._provide("sandbox_bind_mounts", use)

    def _add_rootfs(self, plan: ContainerPlan) -> None:
        target = self.directory / plan.container_id / "rootfs"
        target.mkdir(mode=0o755, parents=True)
        for mount in plan.rootfs:
            self._mount(plan.container_id, mount.source, str(target), mount.type, mount.options)

    def _provide(self, what: str, use: Use) -> None:
        """Have an export mounted, and as writable as its users need it.

        Raises:
            NotFound: the path does not exist, or is not accessible.
            FailedPrecondition: it was replaced after the plan was made, or the kernel refuses the mount.
        """
        held = self._held[use.export.name]
        try:
            if not held.mounted:
                self._bind(what, held)
            self._fit(held)
        except OSError as error:
            raise FailedPrecondition(f"{what}: cannot bind {use.export.source} in the shared tree: {error}") from error
        if use.part:
            self._check_part(what, use)

    def _bind(self, what: str, held: _Held) -> None:
        """Bind-mount a path through a descriptor of the mount, so that what is checked is what is mounted.

        Raises:
            NotFound: the path does not exist, or is not accessible.
            FailedPrecondition: it was replaced after the plan was made.
            OSError: the kernel refuses the mount.
        """
        export = held.export
        target = self.directory / export.name
        try:
            tree = on_host(linux.clone_tree, export.source, export.submounts is not Submounts.HIDDEN)
        except OSError as error:
            raise NotFound(f"{what}: cannot share {export.source}: {error.strerror}") from error
        try:
            info = os.fstat(tree)
            if export.identity not in (None, (info.st_dev, info.st_ino)):
                raise FailedPrecondition(_REPLACED.format(what, export.source), hint=_REPLACED_HINT)
            target.parent.mkdir(mode=0o755, exist_ok=True)
            if stat.S_ISDIR(info.st_mode):
                target.mkdir(mode=0o755, exist_ok=True)
            else:
                target.touch(mode=0o600)
            linux.attach(tree, str(target))
            # It has come as a peer of the host's mount: only the host's mounts are to be seen here, and none there.
            linux.set_propagation(str(target), linux.MS_SLAVE | linux.MS_REC)
        finally:
            os.close(tree)
        held.mounted = True
        held.readonly = held.fixed = bool(os.statvfs(target).f_flag & os.ST_RDONLY)

    def _fit(self, held: _Held) -> None:
        """Make an export read-only on the host if none of its users may write to it, else writable.

        Raises:
            OSError: the kernel refuses.
        """
        with self._table_lock:
            readonly = not any(held.users.values())
        if held.fixed or held.readonly == readonly:
            return
        target = str(self.directory / held.export.name)
        try:
            if readonly:
                linux.make_read_only(target, recursive=held.export.submounts is Submounts.READ_ONLY)
            else:
                linux.make_writable(target)
            held.readonly = readonly
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            log.info("%s stays writable for the guest, which has a file open in it", held.export.source)

    def _check_part(self, what: str, use: Use) -> None:
        """Make sure that the guest finds in an export what was planned.

        Raises:
            FailedPrecondition: it was moved or replaced.
        """
        export = os.open(self.directory / use.export.name, os.O_PATH | os.O_CLOEXEC)
        try:
            resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
            fd = openat2(export, use.part, os.O_PATH, resolve=resolve)
            try:
                info = os.fstat(fd)
            finally:
                os.close(fd)
        except OSError:
            info = None
        finally:
            os.close(export)
        if info is None or (info.st_dev, info.st_ino) != use.identity:
            path = f"{use.export.source}/{use.part}"
            raise FailedPrecondition(_REPLACED.format(what, path), hint=_REPLACED_HINT)

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
        """Unmount a container's files but for what others use, and remove their mount points. Idempotent."""
        with self._lock:
            for target in reversed(self._mounted.pop(container_id, [])):
                linux.umount(target)
            rootfs = self.directory / container_id / "rootfs"
            for held in self._leave(container_id):
                self._give_up(held)
            for path in (rootfs, rootfs.parent):
                self._remove_mount_point(str(path))

    def _leave(self, owner: str) -> list[_Held]:
        """End a container's claims; return what it had, newest first."""
        with self._table_lock:
            left = [held for held in reversed(self._held.values()) if held.users.pop(owner, None) is not None]
            for held in left:
                if not held.users:
                    del self._held[held.export.name]
        return left

    def _give_up(self, held: _Held) -> None:
        """Unmount an export that nobody uses any more; else make it read-only again, if nobody may write to it.

        Raises:
            OSError: the kernel refuses.
        """
        target = str(self.directory / held.export.name)
        if not held.users:
            if held.mounted:
                linux.umount(target)
            self._remove_mount_point(target)
        elif held.mounted:
            self._fit(held)

    @staticmethod
    def _remove_mount_point(path: str) -> None:
        try:
            os.rmdir(path)
        except NotADirectoryError:
            os.unlink(path)
        except FileNotFoundError:
            pass
