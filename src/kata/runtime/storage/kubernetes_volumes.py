"""Kubernetes' volumes, recognized by kubelet's paths: <pod>/volumes/<plugin>/<volume name>. Pure.

    kubernetes.io~empty-dir on a tmpfs          memory of the guest, as much as the host's tmpfs has
    kubernetes.io~empty-dir on huge pages       huge pages of the guest, up to the container's limit
    kubernetes.io~empty-dir, anything else      shared, or a directory beside the pod's root (`disable_guest_empty_dir`)
    kubernetes.io~configmap, ~secret,           shared, and copied in the guest, where inotify sees the updates,
    ~projected, ~downward-api                   if it has few files
    everything else                             shared

What the paths lead to is found by `kata.runtime.storage.host_paths`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from kata.errors import InvalidArgument

#: Where the guest keeps volumes in memory, and copies of volumes that containers watch (Kata's paths).
GUEST_EPHEMERAL = "/run/kata-containers/sandbox/ephemeral"
GUEST_WATCHABLE = "/run/kata-containers/sandbox/watchable"

#: A volume with more files is not copied (Kata's limit; symbolic links count).
MAX_WATCHABLE_FILES = 8

EMPTY_DIR = "kubernetes.io~empty-dir"
#: Plugins whose volumes kubelet updates in place.
WATCHABLE = frozenset(
    f"kubernetes.io~{plugin}" for plugin in ("configmap", "secret", "projected", "downward-api")
)  # fmt: skip


@dataclass(frozen=True)
class EmptyDir:
    """An emptyDir on the host.

    Attributes:
        fstype: of the file system that is mounted there; "" if none is.
        size: bytes of the file system that it lies on.
        page_size: of a hugetlbfs, as its mount option has it ("2M").
        mode: permissions.
        gid: group.
    """

    fstype: str = ""
    size: int = 0
    page_size: str = ""
    mode: int = 0o777
    gid: int = 0


@dataclass(frozen=True)
class GuestStorage:
    """What the agent mounts before a container sees it: the fields of its `Storage` message.

    Attributes:
        driver, source, fstype, options: as in Kata's agent protocol.
        point: path in the guest.
        shared: whether it lives as long as the sandbox, not as long as its containers.
        create: directories that are made first, of an overlay.
    """

    driver: str
    source: str
    fstype: str
    options: tuple[str, ...]
    point: str
    shared: bool = False
    create: tuple[str, ...] = ()


def plugin_of(path: str) -> str:
    """The name of the directory of a volume's plugin, if `path` is a volume's; else the name of another directory."""
    return os.path.basename(os.path.dirname(os.path.normpath(path)))


def in_guest(
    source: str, found: EmptyDir, pod_root: str, hugepages: Mapping[str, int], *, on_disk: bool
) -> GuestStorage | None:
    """What the guest has instead of an emptyDir of the host; None if that is shared.

    Args:
        source: its path on the host.
        found: what is there.
        pod_root: the pod's root in the guest.
        hugepages: bytes of huge pages that the container may use, by page size ("2MB").
        on_disk: whether an emptyDir on disk becomes a directory of the guest.

    Raises:
        InvalidArgument: it is of huge pages, and the container has no limit of these.
    """
    name = os.path.basename(os.path.normpath(source))
    group = (f"fsgid={found.gid}",) if found.gid else ()
    mode = f"mode={found.mode:04o}"
    point = f"{GUEST_EPHEMERAL}/{name}"
    if found.fstype == "tmpfs":
        return GuestStorage("ephemeral", "tmpfs", "tmpfs", (f"size={found.size}", mode, *group), point, shared=True)
    if found.fstype == "hugetlbfs":
        page = found.page_size
        size = next((limit for size, limit in hugepages.items() if size.removesuffix("B") == page), 0)
        if not size:
            raise InvalidArgument(
                f"volume {name} needs huge pages of {page}, of which its container has no limit",
                hint=f"give the container a limit of hugepages-{page}i",
            )
        options = (f"pagesize={page}", f"size={size}", mode, *group)
        return GuestStorage("ephemeral", "nodev", "hugetlbfs", options, point, shared=True)
    if on_disk:
        return GuestStorage("local", "local", "local", (mode, *group), f"{pod_root}/local/{name}", shared=True)
    return None
