"""The host's cgroups: version 1 with its several hierarchies, or version 2 with one.

A host that has both (hybrid) counts as version 1, as for containerd and runc, because that has the controllers.
Version 1's named hierarchies (systemd's) control nothing and are left alone.

Sources: the kernel's Documentation/admin-guide/cgroup-v1/*.rst and cgroup-v2.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kata.linux import cgroup, mountinfo

#: The period of a CPU quota.
CPU_PERIOD_US = 100_000
#: Minimum and maximum of cpu.shares.
_SHARES = (2, 262_144)
#: Options of a hierarchy of version 1 that have no value and name no controller.
_NO_CONTROLLERS = frozenset(("rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode"))
_CPUSET_FILES = ("cpuset.cpus", "cpuset.mems")


@dataclass(frozen=True)
class Hierarchy:
    """A mounted hierarchy.

    Attributes:
        mount: where it is mounted.
        controllers: those of version 1; empty for version 2, where they differ from cgroup to cgroup.
        root: the cgroup that is mounted there, "/" unless only a part of the hierarchy is.
    """

    mount: str
    controllers: frozenset[str] = frozenset()
    root: str = "/"

    @property
    def unified(self) -> bool:
        """Whether it is version 2's."""
        return not self.controllers

    def directory(self, group: str) -> str:
        """The directory of a cgroup, given by its absolute path within the mounted part."""
        return os.path.join(self.mount, group.lstrip("/"))


@dataclass(frozen=True)
class CgroupLimits:
    """Limits of a cgroup as a whole; None for no limit.

    Attributes:
        cpu_milli: thousandths of a CPU.
        cpu_shares: the weight relative to other cgroups, as version 1's cpu.shares.
        cpus: the CPUs it may run on, as "0-2,5".
        memory: in bytes.
    """

    cpu_milli: int | None = None
    cpu_shares: int | None = None
    cpus: str | None = None
    memory: int | None = None


def mounted(table: str = mountinfo.SELF) -> tuple[Hierarchy, ...]:
    """The hierarchies that have the controllers; none if this host has no cgroups. Raises OSError."""
    found: dict[frozenset[str], Hierarchy] = {}
    unified = None
    for mount in mountinfo.read(table):
        if mount.fstype == "cgroup2" and unified is None:
            unified = Hierarchy(mount.point, root=mount.root)
        elif mount.fstype == "cgroup":
            controllers = frozenset(name for name, value in mount.options.items() if not value) - _NO_CONTROLLERS
            if controllers:
                # What is mounted last lies on top.
                found[controllers] = Hierarchy(mount.point, controllers, mount.root)
    if found:
        return tuple(found.values())
    return (unified,) if unified else ()


def own_groups(hierarchies: Sequence[Hierarchy], file: str = "/proc/self/cgroup") -> dict[Hierarchy, str]:
    """This process's cgroup in each hierarchy; one outside of the mounted part counts as its root. Raises OSError."""
    groups: dict[frozenset[str], str] = {}
    with open(file, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            groups[frozenset(controllers.split(",")) - {""}] = path
    own = {}
    for hierarchy in hierarchies:
        path = groups.get(hierarchy.controllers, "/")
        prefix = hierarchy.root.rstrip("/") + "/"
        own[hierarchy] = "/" + path.removeprefix(prefix) if path.startswith(prefix) else "/"
    return own


def missing(hierarchy: Hierarchy, group: str) -> list[str]:
    """The directories that have to be made for `group`, the outermost first."""
    directories = []
    directory = hierarchy.directory(group)
    while directory != hierarchy.mount and not os.path.isdir(directory):
        directories.append(directory)
        directory = os.path.dirname(directory)
    return directories[::-1]


def make(hierarchy: Hierarchy, directory: str) -> None:
    """Make one cgroup, ready for processes. It may exist.

    Raises:
        OSError: the kernel refuses.
    """
    parent = os.path.dirname(directory)
    if hierarchy.unified:
        cgroup.enable_controllers(parent)
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        return
    if "cpuset" in hierarchy.controllers:
        # A new one of version 1 has no CPUs and no memory, and takes no process.
        for name in _CPUSET_FILES:
            if not cgroup.read(directory, name).strip():
                cgroup.write(directory, name, cgroup.read(parent, name).strip())


def join(hierarchy: Hierarchy, group: str, pid: int) -> None:
    """Move a process with all its threads into a cgroup; one that has ended is ignored.

    Args:
        hierarchy: of the cgroup.
        group: its path; see `Hierarchy.directory`.
        pid: of the process.

    Raises:
        OSError: the kernel refuses.
    """
    try:
        cgroup.write(hierarchy.directory(group), "cgroup.procs", str(pid))
    except ProcessLookupError:
        pass


def join_thread(hierarchy: Hierarchy, group: str, tid: int) -> None:
    """Move a single thread into a cgroup; one that has ended is ignored.

    Args:
        hierarchy: of the cgroup, version 1 only.
        group: its path; see `Hierarchy.directory`.
        tid: of the thread.

    Raises:
        OSError: the kernel refuses.
    """
    try:
        cgroup.write(hierarchy.directory(group), "tasks", str(tid))
    except ProcessLookupError:
        pass


def limit_files(limits: CgroupLimits, *, unified: bool) -> Iterator[tuple[str, str, str]]:
    """(controller, file, text) for each limit. "No limit" is written as well, because there may have been one."""
    quota = None if limits.cpu_milli is None else limits.cpu_milli * CPU_PERIOD_US // 1000
    shares = None if limits.cpu_shares is None else min(max(limits.cpu_shares, _SHARES[0]), _SHARES[1])
    if unified:
        yield "cpu", "cpu.max", f"{'max' if quota is None else quota} {CPU_PERIOD_US}"
        if shares is not None:
            # The conversion of 2…262144 to 1…10000 that runc and crun use.
            yield "cpu", "cpu.weight", str(1 + (shares - 2) * 9999 // 262_142)
        yield "memory", "memory.max", "max" if limits.memory is None else str(limits.memory)
    else:
        yield "cpu", "cpu.cfs_period_us", str(CPU_PERIOD_US)
        yield "cpu", "cpu.cfs_quota_us", "-1" if quota is None else str(quota)
        if shares is not None:
            yield "cpu", "cpu.shares", str(shares)
        yield "memory", "memory.limit_in_bytes", "-1" if limits.memory is None else str(limits.memory)
    if limits.cpus is not None:
        yield "cpuset", "cpuset.cpus", limits.cpus
