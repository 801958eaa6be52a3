"""Volumes that Kubernetes makes, told by the paths of kubelet's: <pod>/volumes/<plugin>/<volume name>.

    kubernetes.io~empty-dir, a tmpfs            memory of the guest, as much as the host's has
    kubernetes.io~empty-dir, huge pages         huge pages of the guest, as many as the container is limited to
    kubernetes.io~empty-dir, anything else      shared, or a directory beside the pod's root (`disable_guest_empty_dir`)
    kubernetes.io~configmap, ~secret,           shared, and copied in the guest, where inotify sees the updates,
    ~projected, ~downward-api                   if it is small
    everything else                             shared

Decided by looking at the host without changing anything.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from kata.errors import InvalidArgument
from kata.linux import mountinfo

#: Where the guest keeps volumes in its memory (Kata's path), and copies of what inotify has to work on.
GUEST_EPHEMERAL = "/run/kata-containers/sandbox/ephemeral"
GUEST_WATCHABLE = "/run/kata-containers/sandbox/watchable"

#: More files than that and the guest sees the shared directory itself (Kata's limit; symbolic links count).
WATCHABLE_FILES_MAX = 8

_EMPTY_DIR = "kubernetes.io~empty-dir"
_WATCHABLE = frozenset(
    f"kubernetes.io~{plugin}" for plugin in ("configmap", "secret", "projected", "downward-api")
)  # fmt: skip


@dataclass(frozen=True)
class GuestStorage:
    """What the agent has to mount before a container sees it: the fields of its `Storage` message.

    Attributes:
        point: where, in the guest.
        shared: whether it lives as long as the sandbox, not as long as its containers.
    """

    driver: str
    source: str
    fstype: str
    options: tuple[str, ...]
    point: str
    shared: bool = False


def empty_dir(source: str, pod_root: str, hugepages: Mapping[str, int], *, in_guest: bool) -> GuestStorage | None:
    """What the guest has instead of an emptyDir; None if `source` is none, or one to be shared.

    Args:
        pod_root: the pod's root in the guest, for one on disk.
        hugepages: bytes of huge pages that the container may have, by size of the page ("2MB").
        in_guest: whether one on disk is the guest's own directory.

    Raises:
        InvalidArgument: huge pages without a limit, which says how many.
    """
    parent, name = os.path.split(os.path.normpath(source))
    if os.path.basename(parent) != _EMPTY_DIR:
        return None
    try:
        info = os.stat(source)
    except OSError:
        return None  # reported as missing where it is shared
    group = (f"fsgid={info.st_gid}",) if info.st_gid else ()
    mode = f"mode={stat.S_IMODE(info.st_mode):04o}"
    mounted = mountinfo.mounted_at(source)
    fstype = mounted.fstype if mounted else ""
    point = f"{GUEST_EPHEMERAL}/{name}"
    if fstype == "tmpfs":
        space = os.statvfs(source)
        options = (f"size={space.f_blocks * space.f_frsize}", mode, *group)
        return GuestStorage("ephemeral", "tmpfs", "tmpfs", options, point, shared=True)
    if mounted and fstype == "hugetlbfs":
        page = mounted.options.get("pagesize", "2M")
        size = next((limit for size, limit in hugepages.items() if size.removesuffix("B") == page), 0)
        if not size:
            raise InvalidArgument(
                f"volume {name} is of huge pages of {page}, and its container has no limit of them",
                hint=f"give the container a limit of hugepages-{page}i",
            )
        options = (f"pagesize={page}", f"size={size}", mode, *group)
        return GuestStorage("ephemeral", "nodev", "hugetlbfs", options, point, shared=True)
    if in_guest:
        return GuestStorage("local", "local", "local", (mode, *group), f"{pod_root}/local/{name}", shared=True)
    return None


def is_watchable(source: str) -> bool:
    """Whether it is a volume that kubelet updates in place, small enough to be copied in the guest."""
    if os.path.basename(os.path.dirname(os.path.normpath(source))) not in _WATCHABLE or not os.path.isdir(source):
        return False
    files = 0
    for _, directories, names in os.walk(source):
        # os.walk counts links to directories, such as "..data", among the directories.
        files += len(names) + sum(1 for name in directories if name == "..data")
        if files > WATCHABLE_FILES_MAX:
            return False
    return True
