"""The sandbox's own mount namespace: what is mounted for it is gone with its last process, however that died."""

from __future__ import annotations

import errno

from kata.errors import FailedPrecondition
from kata.linux import mount, mountinfo, namespaces
from kata.runtime.storage.host_mounts import remember_host


def enter_mount_namespace(directory: str) -> None:
    """Move this process, and so its future children, into a new mount namespace.

    Mounts that the host makes later propagate into it where the host's are shared (`kata.runtime.storage.host_mounts`
    finds the others); mounts made here beneath `directory` never reach the host (mount_namespaces(7), "Shared
    subtrees").

    Args:
        directory: the sandbox's state directory.

    Raises:
        FailedPrecondition: the kernel refuses, usually because this is not root; or `directory` is on a shared mount
            that a chroot hides.
    """
    try:
        propagates = _propagates(directory)
        remember_host()
        namespaces.unshare(namespaces.CLONE_NEWNS)
        _only_receive(directory, propagates)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot make a mount namespace: {error.strerror or error}", hint="sandboxes are started by root"
        ) from error


def _only_receive(directory: str, propagates: bool) -> None:
    """Make the mounts of this namespace slaves of the host's.

    Args:
        directory: the sandbox's state directory.
        propagates: whether its mount was shared with the host.

    Raises:
        FailedPrecondition: its mount is out of reach, and shared.
        OSError: the kernel refuses.
    """
    try:
        mount.set_propagation("/", mount.MS_SLAVE | mount.MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A chroot whose root is not a mount point: only the mounts inside it can be changed.
        points = mountinfo.points_below("/")
        for point in points:
            mount.set_propagation(point, mount.MS_SLAVE)
        if propagates and not any(directory.startswith(point + "/") for point in points):
            raise FailedPrecondition(
                f"mounts made in {directory} would reach the host: it is on a shared mount outside this chroot",
                hint="mount a tmpfs on /run first",
            ) from None


def _propagates(directory: str) -> bool:
    """Whether the mount that a directory is on is shared, as far as can be seen from here."""
    mount_id = mountinfo.mount_id(directory)
    # A chroot hides the mount that its root is on from all but processes outside, such as the first one.
    for process in ("self", "1"):
        try:
            mounts = mountinfo.read(f"/proc/{process}/mountinfo")
        except (FileNotFoundError, PermissionError):
            continue
        for mounted in mounts:
            if mounted.id == mount_id:
                return mounted.shared
    return True
