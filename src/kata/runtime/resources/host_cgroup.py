"""The sandbox's control group on the host: where the shim, the monitor and its helpers run, and what bounds them.

With `sandbox_cgroup_only` all of them are in the group that the manager has chosen (`linux.cgroupsPath`), so its
accounting and limits are the pod's. Without, only the machine's processors are there, and the rest is in
/kata_overhead/<sandbox>, which has no limits; version 2 cannot part threads from their memory, so there the whole
monitor is in the chosen group.

Every directory is on the ledger before it is made. A host that does not let this process make groups (read-only, no
rights, none mounted) costs accounting and a second wall, not the sandbox: that is a warning, as in Kata.
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

log = logging.getLogger(__name__)

_DEFAULT = "/vc"
_OVERHEAD = "/kata_overhead"
_PATH_MAX = 1024
_SYSTEMD = re.compile(r"([^/:]*):([^/:]*):([^/:]+)")
_NO_RIGHTS = frozenset((errno.EROFS, errno.EACCES, errno.EPERM))
#: Tries to make a group whose parent somebody removes at the same time.
_TRIES = 5


@dataclass(frozen=True)
class CgroupPaths:
    """Absolute paths within the hierarchies.

    Attributes:
        sandbox: the group with the limits.
        overhead: where the processes are whose threads are not all in `sandbox`; None if they are in it.
    """

    sandbox: str
    overhead: str | None


def plan_cgroups(sandbox_id: str, spec: Spec, *, sandbox_cgroup_only: bool) -> CgroupPaths:
    """The sandbox's groups.

    Unlike in Kata the last component does not get the prefix `kata_`: who looks for a container's group by the path
    that it has asked for (Podman, cAdvisor) finds it.

    Raises:
        InvalidArgument: cgroupsPath leads somewhere else than it says.
    """
    asked = str((spec.get("linux") or {}).get("cgroupsPath") or "")
    path = expand(asked) if asked else f"{_DEFAULT}/{sandbox_id}"
    return CgroupPaths(path, None if sandbox_cgroup_only else f"{_OVERHEAD}/{sandbox_id}")


def expand(text: str) -> str:
    """The group that a cgroupsPath names: a path, or systemd's `slice:prefix:name`.

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
    if not parts or any(part in (".", "..") for part in parts) or len(path) > _PATH_MAX or not path.isprintable():
        raise InvalidArgument(
            f"cgroupsPath {text[:200]!r} names no control group", hint="expected /a/path or slice:prefix:name"
        )
    return path


def _slices(name: str, text: str) -> list[str]:
    """A slice's place is in its name: a-b.slice is within a.slice (systemd.slice(5))."""
    if name == "-.slice":
        return []
    stem = name.removesuffix(".slice")
    words = stem.split("-")
    if stem == name or not all(words):
        raise InvalidArgument(f"cgroupsPath {text[:200]!r}: {name!r} is no slice")
    return ["-".join(words[:count]) + ".slice" for count in range(1, len(words) + 1)]


class HostCgroup:
    """The groups of one sandbox. Blocking calls of a few milliseconds each; moving a process can take 20.

    Attributes:
        groups: where; None if there are none.
    """

    def __init__(self, groups: CgroupPaths, ledger: Ledger, mounted: Sequence[Hierarchy] | None = None) -> None:
        self.groups: CgroupPaths | None = groups
        self._ledger = ledger
        self._hierarchies = tuple(hierarchies.mounted() if mounted is None else mounted)
        self._home: dict[Hierarchy, str] = {}

    def enter(self) -> None:
        """Make the groups, and move this process and its children there, as far as they are the sandbox's.

        Children to come begin there.

        Raises:
            FailedPrecondition: a group cannot be made.
        """
        if not self._hierarchies:
            self._do_without("no control groups are mounted")
        if self.groups is None:
            return
        home = hierarchies.own_groups(self._hierarchies)
        try:
            for group in filter(None, (self.groups.overhead, self.groups.sandbox)):
                for hierarchy in self._hierarchies:
                    self._make(hierarchy, group)
            # From now on this process may be in a group of the sandbox, and has to leave it.
            self._home = home
            for hierarchy in self._hierarchies:
                hierarchies.join(hierarchy, self.groups.overhead or self.groups.sandbox, os.getpid())
            self.adopt(_children())
        except OSError as error:
            if error.errno not in _NO_RIGHTS:
                raise FailedPrecondition(
                    f"control group {self.groups.sandbox}: {error.strerror}: {error.filename or ''}".rstrip(": ")
                ) from error
            self._do_without(f"{error.filename}: {error.strerror}")

    @property
    def parts_threads(self) -> bool:
        """Whether the machine's processors are in another group than the rest."""
        return self.groups is not None and self.groups.overhead is not None

    def _do_without(self, reason: str) -> None:
        log.warning("the sandbox runs without a control group of its own on the host: %s", reason)
        self.groups = None

    def _make(self, hierarchy: Hierarchy, group: str) -> None:
        for attempt in range(_TRIES):
            try:
                for directory in hierarchies.missing(hierarchy, group) or [hierarchy.directory(group)]:
                    self._ledger.hold(CGROUP, directory)
                    hierarchies.make(hierarchy, directory)
                return
            except FileNotFoundError:
                if attempt + 1 == _TRIES:
                    raise

    def adopt(self, pids: Iterable[int]) -> None:
        """Move processes of the sandbox's. Raises OSError."""
        if self.groups is None:
            return
        for pid in pids:
            for hierarchy in self._hierarchies:
                hierarchies.join(hierarchy, self.groups.overhead or self.groups.sandbox, pid)

    def confine(self, pid: int, threads: Iterable[int]) -> None:
        """Have the machine's processors under the sandbox's limits, where the rest of it is elsewhere.

        Args:
            pid: the monitor.
            threads: its threads that run the guest.
        """
        if self.groups is None or self.groups.overhead is None:
            return
        try:
            for hierarchy in self._hierarchies:
                if hierarchy.unified:
                    hierarchies.join(hierarchy, self.groups.sandbox, pid)
                else:
                    for thread in threads:
                        hierarchies.join_thread(hierarchy, self.groups.sandbox, thread)
        except OSError as error:
            log.warning("the machine is not under the limits of %s: %s", self.groups.sandbox, error)

    def limit(self, limits: CgroupLimits) -> None:
        """Set the sandbox's limits. One that the kernel refuses is a warning: the guest has the containers' own."""
        if self.groups is None:
            return
        for hierarchy in self._hierarchies:
            directory = hierarchy.directory(self.groups.sandbox)
            for controller, name, text in hierarchies.limit_files(limits, unified=hierarchy.unified):
                if not hierarchy.unified and controller not in hierarchy.controllers:
                    continue
                try:
                    cgroup.write(directory, name, text)
                except FileNotFoundError:
                    log.info("control group %s has no %s", directory, name)
                except OSError as error:
                    log.warning("control group %s: %s = %s: %s", directory, name, text, error.strerror)

    def leave(self) -> None:
        """Move this process back to where it was, so that the groups can be removed. Idempotent."""
        home, self._home = self._home, {}
        for hierarchy, group in home.items():
            for target in (group, "/"):
                try:
                    hierarchies.join(hierarchy, target, os.getpid())
                    break
                except OSError as error:
                    log.debug("cannot go back to %s of %s: %s", target, hierarchy.mount, error)


def _children() -> set[int]:
    """The processes that this one has started for a sandbox, one in standby maybe; others are none of its business.

    One that was forked a moment ago, and has not executed anything yet, does not carry a sandbox's mark.
    """
    mine = str(os.getpid())
    own = os.readlink("/proc/self/exe")
    mark = f"{MARKER}=".encode()
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
                    marked = any(variable.startswith(mark) for variable in environment.read().split(b"\0"))
                if marked or os.readlink(f"/proc/{name}/exe") == own:
                    found.add(int(name))
            except OSError:
                continue  # it has ended
    return found
