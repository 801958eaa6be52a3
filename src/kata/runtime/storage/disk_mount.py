"""How the guest mounts a disk."""

from __future__ import annotations

from dataclasses import dataclass

#: Where the guest mounts disks (Kata's path).
GUEST_STORAGE = "/run/kata-containers/sandbox/storage"
#: File systems on a disk that the guest's kernel knows.
DISK_TYPES = frozenset({"ext2", "ext3", "ext4", "xfs", "erofs", "squashfs", "iso9660", "vfat"})


@dataclass(frozen=True)
class DiskMount:
    """Where and how the guest mounts a disk.

    Attributes:
        point: path in the guest.
        group: the group that its files are given to (Kubernetes' fsGroup), or None.
        on_root_mismatch: only if the root does not have that group already.
    """

    point: str
    fstype: str
    options: tuple[str, ...] = ()
    group: int | None = None
    on_root_mismatch: bool = False
