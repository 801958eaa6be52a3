"""A mount namespace of the sandbox's own: what is mounted for it vanishes with its last process, however that died."""

from __future__ import annotations

import errno

from kata.errors import FailedPrecondition
from kata.linux import mount, namespaces


def enter_mount_namespace(directory: str) -> None:
    """Move this process, and so its future children, into a new mount namespace.

    Mounts that the host makes later still arrive (a volume may be one); mounts made here beneath `directory` never
    reach the host (mount_namespaces(7), shared subtrees).

    Raises:
        FailedPrecondition: the kernel refuses, in general because this is not root.
    """
    try:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        try:
            mount.set_propagation("/", mount.MS_SLAVE | mount.MS_REC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _enslave_one_by_one(directory)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot make a mount namespace: {error.strerror or error}", hint="sandboxes are started by root"
        ) from error


def _enslave_one_by_one(directory: str) -> None:
    """In a chroot whose root is no mount point only the mounts inside can be changed; `directory` must be in one."""
    points = mount.mount_points("/")
    if not any(directory == point or directory.startswith(point + "/") for point in points):
        raise FailedPrecondition(
            f"in this chroot {directory} is on no file system of its own: mounts made there would reach the host",
            hint="mount a tmpfs on /run first",
        )
    for point in points:
        mount.set_propagation(point, mount.MS_SLAVE)
