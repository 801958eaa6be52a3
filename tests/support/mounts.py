"""Commands in a mount namespace of their own, for tests that mount."""

from __future__ import annotations

# In a chroot the root is not a mount point: there only /run can be changed.
_SCRIPT = 'mount --make-rslave / 2>/dev/null || mount --make-slave /run 2>/dev/null; exec "$@"'


def in_mount_namespace(*command: str) -> list[str]:
    """Return the command line that runs `command` in a mount namespace whose mounts do not reach the host."""
    return ["unshare", "--mount", "--propagation=unchanged", "sh", "-c", _SCRIPT, "sh", *command]
