"""A mount namespace of the sandbox's own: what is mounted for it vanishes with its last process, however that died."""

from __future__ import annotations

from kata.errors import FailedPrecondition
from kata.linux import mount, namespaces


def enter_mount_namespace() -> None:
    """Move this process, and so its future children, into a new mount namespace.

    Mounts that the host makes later still arrive (a volume may be one), mounts made here never reach the host.

    Raises:
        FailedPrecondition: the kernel refuses, in general because this is not root.
    """
    try:
        namespaces.unshare(namespaces.CLONE_NEWNS)
        mount.set_propagation("/", mount.MS_SLAVE | mount.MS_REC)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot make a mount namespace: {error.strerror or error}", hint="sandboxes are started by root"
        ) from error
