"""The shared tree: the host directory that the guest mounts, with rootfs and volumes mounted into it.

    host   <state>/shared/@<number>             guest  /run/kata-containers/shared/containers/@<number>
           <state>/shared/<container>/rootfs           …/<container>/rootfs
           <state>/shared/sandbox-mounts/<name>        …/sandbox-mounts/<name>
           <state>/root/<container>                    /run/kata-containers/sandbox/root/<container>

The last is a device of its own over 9p. The guest mounts it for one container at a time, and caches as if nobody else
changed what is there (`cache=loose`). It has one root only: the guest knows files by their inode numbers then, and two
roots on the same layers, which are one file system each, have files with the same number.

`SharedTree` carries out what `kata.runtime.storage.container_files` plans, and undoes it. The mounts are made in the
sandbox's own mount namespace, so that none of them can outlive it.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
import threading
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path

from kata.errors import FailedPrecondition, NotFound
from kata.linux import mount as linux
from kata.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2
from kata.runtime.storage.container_files import SANDBOX_MOUNTS, ContainerPlan, plan_sandbox_mounts, sandbox_mount
from kata.runtime.storage.exports import Export, Submounts, Use
from kata.runtime.storage.host_mounts import on_host
from kata.runtime.storage.host_paths import look_at_sources
from kata.runtime.storage.overlay import compact

log = logging.getLogger(__name__)

_REPLACED = "{}: {} was replaced while the container was being created"
_REPLACED_HINT = "nothing of it was shared; create the container again"


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
        root: the directory of the device for a root; None if the VM has no such device.
    """

    def __init__(self, directory: Path, root: Path | None = None) -> None:
        self.directory = directory
        self._root = root
        self._root_user = ""
        for path in filter(None, (directory, root)):
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
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

    @property
    def has_room_for_root(self) -> bool:
        """Whether a container can have the device for a root."""
        return self._root is not None and not self._root_user

    def claim(self, plan: ContainerPlan) -> None:
        """Keep what a plan uses until `remove`, or announce it, if it is not there yet. Touches no file."""
        if plan.root_apart:
            self._root_user = plan.container_id
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
        host = on_host(look_at_sources, [sandbox_mount(path)[0] for path in paths])
        uses = plan_sandbox_mounts(paths, host)
        self._claim(SANDBOX_MOUNTS, uses)
        for use in uses:
            self._provide("sandbox_bind_mounts", use)

    def _add_rootfs(self, plan: ContainerPlan) -> None:
        target = self.directory / plan.container_id / "rootfs"
        if plan.root_apart and self._root:
            target = self._root / plan.container_id
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
            if self._root and self._root_user == container_id:
                self._remove_mount_point(str(self._root / container_id))
                self._root_user = ""

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
