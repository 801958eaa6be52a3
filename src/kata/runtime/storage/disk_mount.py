"""How the guest mounts a disk."""

from __future__ import annotations

from dataclasses import dataclass

#: Where the guest mounts disks (Kata's path).
GUEST_STORAGE = "/run/kata-containers/sandbox/storage"
#: File systems on disks that the guest's kernel supports.
DISK_TYPES = frozenset({"ext2", "ext3", "ext4", "xfs", "erofs", "squashfs", "iso9660", "vfat"})


@dataclass(frozen=True)
class DiskMount:
    """Where and how the guest mounts a disk.

    Attributes:
        point: path in the guest.
        fstype, options: as for mount(8).
        group: the group that its files get (Kubernetes' fsGroup), or None.
        on_root_mismatch: whether they get it only if the root directory does not have it.
    """

    point: str
    fstype: str
    options: tuple[str, ...] = ()
    group: int | None = None
    on_root_mismatch: bool = False
