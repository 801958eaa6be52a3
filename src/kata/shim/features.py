"""What `-info` tells of this runtime, in the OCI specification's form.

Only what holds for a container in a VM is told: a client that reads it relies on it.

Source: runtime-spec, features.md and features-linux.md.
"""

from __future__ import annotations

from typing import Any

from kata.linux import mount
from kata.oci.capabilities import KNOWN

#: The name of the message for a client; its value is JSON.
TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
#: Not "time": the agent's protocol does not carry its offsets.
_NAMESPACES = ("cgroup", "ipc", "mount", "network", "pid", "user", "uts")


def features(*, seccomp: bool) -> dict[str, Any]:
    """The features' JSON object.

    Args:
        seccomp: whether the configuration lets the guest filter system calls.
    """
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.1",
        "hooks": [*_HOOKS],
        # "rro" as well as "ro": the guest mounts what is bound over one file system, with all that is mounted below it.
        "mountOptions": sorted({*mount.OPTION_NAMES, "rro"}),
        "linux": {
            "namespaces": [*_NAMESPACES],
            "capabilities": sorted(KNOWN),
            # Of the host; the guest has version 2.
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": False},
            "seccomp": {"enabled": seccomp},
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            # containerd asks before it lets a container have such a mount, and refuses it then.
            "mountExtensions": {"idmap": {"enabled": False}},
        },
        "potentiallyUnsafeConfigAnnotations": ["io.katacontainers."],
    }
