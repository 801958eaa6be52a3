"""The sandbox's host cgroup: where the shim, the VMM and its helpers run, and what limits them.

With `sandbox_cgroup_only` all of them are in the cgroup that the container engine has chosen (`linux.cgroupsPath`), so
its accounting and limits are the pod's. Without, only the vCPUs are there, and everything else is in
/kata_overhead/<sandbox>, which has no limits. Version 2 cannot separate threads from their process's memory, so there
the whole VMM is in the chosen cgroup.

Every directory is on the ledger before it is made. Where this process may not make cgroups (read-only, no rights, none
mounted), the sandbox loses accounting and a second layer of limits but runs: that is a warning, as in Kata.

Sources: the kernel's admin-guide/cgroup-v1 and admin-guide/cgroup-v2.rst; Kata's design document "Host cgroup
management".
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kata.errors import FailedPrecondition, InvalidArgument
from kata.linux import cgroup, hierarchies
from kata.linux.hierarchies import CgroupLimits, Hierarchy
from kata.oci.spec import Spec
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import CGROUP
from kata.runtime.ledger.processes import MARKER
from kata.runtime.resources.release import remove_cgroup

log = logging.getLogger(__name__)

_DEFAULT = "/vc"
_OVERHEAD = "/kata_overhead"
_MAX_PATH = 1024
_SYSTEMD = re.compile(r"([^/:]*):([^/:]*):([^/:]+)")
_NO_RIGHTS = frozenset((errno.EROFS, errno.EACCES, errno.EPERM))
#: Controllers of version 1 by which a container's limits are shown.
_SHOWN = frozenset(("memory", "cpu"))
#: Tries to make a cgroup whose parent somebody removes at the same time.
_TRIES = 5


@dataclass(frozen=True)
class CgroupPaths:
    """Absolute paths within the hierarchies.

    Attributes:
        sandbox: the cgroup with the limits.
        overhead: the cgroup of the processes whose threads are not all in `sandbox`; None if they all are.
    """

    sandbox: str
    overhead: str | None


def plan_cgroups(sandbox: str, spec: Spec, *, sandbox_cgroup_only: bool) -> CgroupPaths:
    """Where the sandbox's cgroups are.

    Unlike in Kata the last component does not get the prefix `kata_`: whoever looks for a container's cgroup by the
    path that was asked for (Podman, cAdvisor) finds it.

    Args:
        sandbox: names the cgroups that the spec does not name.
        spec: of the first container, or of the pod's sandbox (OCI runtime-spec, config-linux.md, "Cgroups Path").
        sandbox_cgroup_only: whether everything is in one cgroup.

    Raises:
        InvalidArgument: cgroupsPath is not a path that stays within the hierarchy, nor systemd's form.
    """
    asked = str((spec.get("linux") or {}).get("cgroupsPath") or "")
    path = expand(asked) if asked else f"{_DEFAULT}/{sandbox}"
    return CgroupPaths(path, None if sandbox_cgroup_only else f"{_OVERHEAD}/{sandbox}")


def expand(text: str) -> str:
    """The cgroup that a cgroupsPath names: a path, or runc's `slice:prefix:name` for systemd.

    Raises:
        InvalidArgument: it is neither.
    """
    if match := _SYSTEMD.fullmatch(text):
        slice_, prefix, name = match.groups()
        unit = name if name.endswith(".slice") else f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
        parts = [*_slices(slice_ or "system.slice", text), unit]
    else:
        parts = [part for part in text.split("/") if part]
    path = "/" + "/".join(parts)
    if not parts or any(part in (".", "..") for part in parts) or len(path) > _MAX_PATH or not path.isprintable():
        raise InvalidArgument(
            f"cgroupsPath {text[:200]!r} is not a cgroup path", hint="expected /a/path or slice:prefix:name"
        )
    return path


def _slices(name: str, text: str) -> list[str]:
    """A slice's place is in its name: a-b.slice is within a.slice (systemd.slice(5)).

    Args:
        name: of the slice; "-.slice" is the root.
        text: the cgroupsPath that it is from, for the error.

    Returns:
        The directories from the root to the slice: ["a.slice", "a-b.slice"].

    Raises:
        InvalidArgument: it is not the name of a slice.
    """
    if name == "-.slice":
        return []
    stem = name.removesuffix(".slice")
    words = stem.split("-")
    if stem == name or not all(words):
        raise InvalidArgument(f"cgroupsPath {text[:200]!r}: {name!r} is not a slice")
    return ["-".join(words[:count]) + ".slice" for count in range(1, len(words) + 1)]


class HostCgroup:
    """The cgroups of one sandbox. Calls block for a few milliseconds each; moving a process can take 20.

    Args:
        paths: where they are to be.
        ledger: the sandbox's.
        mounted: the hierarchies; None to look.

    Attributes:
        paths: where they are; None if the sandbox has none.
    """

    def __init__(self, paths: CgroupPaths, ledger: Ledger, mounted: Sequence[Hierarchy] | None = None) -> None:
        self.paths: CgroupPaths | None = paths
        self._ledger = ledger
        self._hierarchies = tuple(hierarchies.mounted() if mounted is None else mounted)
        self._home: dict[Hierarchy, str] = {}

    def enter(self) -> None:
        """Make the cgroups, and move this process and those of its children that are the sandbox's there.

        Later children are born there.

        Raises:
            FailedPrecondition: a cgroup cannot be made.
        """
        if not self._hierarchies:
            self._do_without("no cgroups are mounted")
        if self.paths is None:
            return
        home = hierarchies.own_groups(self._hierarchies)
        try:
            for path in filter(None, (self.paths.overhead, self.paths.sandbox)):
                for hierarchy in self._hierarchies:
                    self._make(hierarchy, path)
            # From now on this process may be in a cgroup of the sandbox, and has to leave it.
            self._home = home
            for hierarchy in self._hierarchies:
                hierarchies.join(hierarchy, self.paths.overhead or self.paths.sandbox, os.getpid())
            self.adopt(_children())
        except OSError as error:
            if error.errno not in _NO_RIGHTS:
                raise FailedPrecondition(
                    f"cgroup {self.paths.sandbox}: {error.strerror}: {error.filename or ''}".rstrip(": ")
                ) from error
            self._do_without(f"{error.filename}: {error.strerror}")

    @property
    def separates_vcpus(self) -> bool:
        """Whether the vCPUs are in another cgroup than everything else."""
        return self.paths is not None and self.paths.overhead is not None

    def _do_without(self, reason: str) -> None:
        log.warning("the sandbox runs without a host cgroup: %s", reason)
        self.paths = None

    def _make(self, hierarchy: Hierarchy, path: str) -> None:
        for attempt in range(_TRIES):
            try:
                for directory in hierarchies.missing(hierarchy, path) or [hierarchy.directory(path)]:
                    self._ledger.hold(CGROUP, directory)
                    hierarchies.make(hierarchy, directory)
                return
            except FileNotFoundError:
                if attempt + 1 == _TRIES:
                    raise

    def adopt(self, pids: Iterable[int]) -> None:
        """Move processes of the sandbox to its cgroup. Raises OSError."""
        if self.paths is None:
            return
        for pid in pids:
            for hierarchy in self._hierarchies:
                hierarchies.join(hierarchy, self.paths.overhead or self.paths.sandbox, pid)

    def confine(self, pid: int, threads: Iterable[int]) -> None:
        """Put the vCPUs under the sandbox's limits where the rest of the VMM is elsewhere.

        Args:
            pid: the VMM's process.
            threads: its threads that run the vCPUs.
        """
        if self.paths is None or self.paths.overhead is None:
            return
        try:
            for hierarchy in self._hierarchies:
                if hierarchy.unified:
                    hierarchies.join(hierarchy, self.paths.sandbox, pid)
                else:
                    for thread in threads:
                        hierarchies.join_thread(hierarchy, self.paths.sandbox, thread)
        except OSError as error:
            log.warning("the VM is not under the limits of %s: %s", self.paths.sandbox, error)

    def limit(self, limits: CgroupLimits) -> None:
        """Set the sandbox's limits. One that the kernel refuses is a warning: the guest enforces each container's."""
        if self.paths is not None:
            self._set(self.paths.sandbox, limits, self._hierarchies)

    def show(self, container_id: str, pid: int, limits: CgroupLimits) -> None:
        """Put the process that stands for a container into a cgroup of its own, with the container's limits.

        Whoever wants to know a container's limits looks into the cgroup of its process, and the sandbox's has its own.
        Only with version 1: a cgroup of version 2 that has processes cannot have others beneath it. A failure is a
        warning: nothing depends on it.
        """
        path = self._path_of(container_id)
        try:
            for hierarchy in self._shown:
                self._make(hierarchy, path)
                hierarchies.join(hierarchy, path, pid)
        except OSError as error:
            log.warning("the limits of container %s cannot be seen in cgroup %s: %s", container_id, path, error)
        self.show_limits(container_id, limits)

    def show_limits(self, container_id: str, limits: CgroupLimits) -> None:
        """Set the limits that `show` has set."""
        shown = [each for each in self._shown if os.path.isdir(each.directory(self._path_of(container_id)))]
        self._set(self._path_of(container_id), limits, shown)

    def hide(self, container_id: str) -> None:
        """Undo `show`, once the process has ended. Raises OSError."""
        for hierarchy in self._shown:
            directory = hierarchy.directory(self._path_of(container_id))
            remove_cgroup(directory)
            self._ledger.drop(CGROUP, directory)

    @property
    def _shown(self) -> list[Hierarchy]:
        if self.paths is None:
            return []
        return [each for each in self._hierarchies if each.controllers & _SHOWN]

    def _path_of(self, container_id: str) -> str:
        return f"{self.paths.sandbox}/{container_id}" if self.paths else ""

    @staticmethod
    def _set(path: str, limits: CgroupLimits, mounted: Iterable[Hierarchy]) -> None:
        for hierarchy in mounted:
            directory = hierarchy.directory(path)
            for controller, name, text in hierarchies.limit_files(limits, unified=hierarchy.unified):
                if not hierarchy.unified and controller not in hierarchy.controllers:
                    continue
                try:
                    cgroup.write(directory, name, text)
                except FileNotFoundError:
                    log.info("cgroup %s has no %s", directory, name)
                except OSError as error:
                    log.warning("cgroup %s: %s = %s: %s", directory, name, text, error.strerror)

    def leave(self) -> None:
        """Move this process back to where it was, so that the cgroups can be removed. Idempotent."""
        home, self._home = self._home, {}
        for hierarchy, path in home.items():
            for target in (path, "/"):
                try:
                    hierarchies.join(hierarchy, target, os.getpid())
                    break
                except OSError as error:
                    log.debug("cannot go back to %s of %s: %s", target, hierarchy.mount, error)


def _children() -> set[int]:
    """The processes that this one has started for a sandbox, or for a VM in standby; it may have others.

    One that was forked a moment ago and has not executed anything yet does not carry the marker.
    """
    mine = str(os.getpid())
    own = os.readlink("/proc/self/exe")
    marker = f"{MARKER}=".encode()
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    # After the command, which may hold anything: state, parent.
                    is_child = file.read().rpartition(")")[2].split()[1] == mine
                if not is_child:
                    continue
                with open(f"/proc/{name}/environ", "rb") as environment:
                    marked = any(variable.startswith(marker) for variable in environment.read().split(b"\0"))
                if marked or os.readlink(f"/proc/{name}/exe") == own:
                    found.add(int(name))
            except OSError:
                continue  # it has ended
    return found
