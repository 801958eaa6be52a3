"""The files of a container: what the guest has of each mount of its spec, and from where. Pure.

What is shared with the guest is an export in the shared tree (`kata.runtime.storage.exports`), there once for all who
mount it; a rootfs that containerd describes by its mounts is its container's. `kata.runtime.storage.shared_tree`
carries a plan out. Reference: Kata's table of mounts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from kata.errors import InvalidArgument, NotFound
from kata.oci.spec import Mount
from kata.protocols.shared_tree import ROOT_TAG
from kata.runtime.storage import kubernetes_volumes as kubernetes
from kata.runtime.storage.exports import Export, Submounts, Use, Wanted, plan_uses
from kata.runtime.storage.host_paths import HostPath, HostView, RootfsMount, is_bind, is_shm
from kata.runtime.storage.kubernetes_volumes import GuestStorage

#: Where the guest mounts the shared tree (Kata's path).
GUEST_SHARED = "/run/kata-containers/shared/containers"
#: The sandbox's /dev/shm in the guest: what containers have whose engine has made one for all of them.
GUEST_SHM = "/run/kata-containers/sandbox/shm"
#: Where the guest mounts parts of exports.
GUEST_PARTS = "/run/kata-containers/sandbox/parts"

#: Where the guest mounts the device for a root.
GUEST_ROOT = "/run/kata-containers/sandbox/root"

#: Directory in the shared tree for `sandbox_bind_mounts` (Kata's name).
SANDBOX_MOUNTS = "sandbox-mounts"
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


@dataclass(frozen=True)
class ContainerPlan:
    """The files of one container.

    Attributes:
        container_id: the container's.
        guest_rootfs: the path of the rootfs in the guest.
        rootfs: mounts of the rootfs, in order; empty if it is an export or on a disk.
        root_apart: whether these are for the device for a root, not for the shared tree.
        uses: what it has of the exports: its rootfs, if that is a directory, and its mounts.
        mounts: the spec's mounts with sources in the guest, for the agent.
        storages: what the guest mounts first.
        skipped: mounts that are left out, with the reason, for the log.
        warnings: mounts that cannot do what they are probably for, for the log.
    """

    container_id: str
    guest_rootfs: str
    rootfs: tuple[RootfsMount, ...] = ()
    root_apart: bool = False
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
    root_options: Sequence[str] = (),
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
        root_options: mount options of the device for a root, if this container may have it for its `rootfs`.
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
    root_apart = bool(rootfs and root_options and not disk_root)
    if root_apart:
        guest_rootfs = f"{GUEST_ROOT}/{container_id}"
        storages.append(GuestStorage("9p", ROOT_TAG, "9p", tuple(root_options), GUEST_ROOT))

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
        root_apart=root_apart,
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
        source, write = sandbox_mount(path)
        name = f"{SANDBOX_MOUNTS}/{os.path.basename(source.rstrip('/'))}"
        if name in uses or name.endswith("/"):
            raise InvalidArgument(f"sandbox_bind_mounts: the name of {source} is empty or already in use")
        wanted = Wanted(source, host.paths.get(source), write, readonly_below=not write)
        uses[name] = Use(wanted.export(name), write)
    return tuple(uses.values())


def sandbox_mount(path: str) -> tuple[str, bool]:
    """The source of a sandbox mount, and whether it is writable."""
    source, separator, mode = path.rpartition(":")
    return (source, mode == "rw") if separator and mode in ("ro", "rw") else (path, False)


def _is_beneath(path: str, roots: Sequence[str]) -> bool:
    normal = os.path.normpath(path)
    return any(normal == root or normal.startswith(root + "/") for root in roots)
