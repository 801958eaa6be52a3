"""The default spec of a container: what an engine generates when the user just names a command.

Capabilities, namespaces, masked and read-only paths are containerd's defaults (its `oci.GenerateSpec`), so that a
program finds the same environment as under containerd. Two things differ: a cgroup mount is there, since programs size
themselves by their limits, and setuid programs keep working (no_new_privs is not set), as under Podman and Kubernetes.
There is no tmpfs on /run either: images bring files there.
"""

from __future__ import annotations

from collections.abc import Sequence

from kata.oci.spec import LinuxResources, Mount, Spec, User
from kata.oci.state import OCI_VERSION

CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
NAMESPACES = ("pid", "ipc", "uts", "mount", "network", "cgroup")
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Character devices that mean the same on every Linux: (major, minor); None stands for every minor.
_DEVICES = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, None))


def default_spec(
    args: Sequence[str],
    *,
    rootfs: str,
    hostname: str,
    env: Sequence[str] = (DEFAULT_PATH,),
    cwd: str = "/",
    user: User | None = None,
    terminal: bool = False,
    mounts: Sequence[Mount] = (),
    resources: LinuxResources | None = None,
) -> Spec:
    """The spec for `args` in `rootfs`; nothing of it is shared between calls.

    Args:
        args: the program and its arguments, at least one word.
        rootfs: absolute path of the root file system.
        hostname: "" for none.
        env: "NAME=value" each.
        cwd: absolute path.
        user: numeric ids, as in the specification; None for root.
        terminal: whether the process has one.
        mounts: come after the standard ones, so they win where they overlap.
        resources: limits; the device rules are added.
    """
    capabilities = list(CAPABILITIES)
    identity: User = user if user is not None else {"uid": 0, "gid": 0}
    # Effective and permitted are the program's from the start only for root: another user has to gain them.
    held = capabilities if identity.get("uid", 0) == 0 else []
    return {
        "ociVersion": OCI_VERSION,
        "hostname": hostname,
        "root": {"path": rootfs},
        "process": {
            "terminal": terminal,
            "user": identity,
            "args": list(args),
            "env": list(env),
            "cwd": cwd,
            "capabilities": {"bounding": capabilities, "effective": list(held), "permitted": list(held)},
            "rlimits": [],
            "noNewPrivileges": False,
        },
        "mounts": [*_standard_mounts(), *mounts],
        "linux": {
            "namespaces": [{"type": kind} for kind in NAMESPACES],  # type: ignore[typeddict-item]
            "resources": {**(resources or {}), "devices": _device_rules()},  # type: ignore[typeddict-item]
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
        },
    }


def _standard_mounts() -> list[Mount]:
    def entry(destination: str, kind: str, source: str, *options: str) -> Mount:
        return {"destination": destination, "type": kind, "source": source, "options": list(options)}

    quiet = ("nosuid", "noexec", "nodev")
    return [
        entry("/proc", "proc", "proc", *quiet),
        entry("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        entry("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        entry("/dev/shm", "tmpfs", "shm", *quiet, "mode=1777", "size=65536k"),
        entry("/dev/mqueue", "mqueue", "mqueue", *quiet),
        entry("/sys", "sysfs", "sysfs", *quiet, "ro"),
        entry("/sys/fs/cgroup", "cgroup", "cgroup", *quiet, "relatime", "ro"),
    ]


def _device_rules() -> list[dict[str, object]]:
    rules: list[dict[str, object]] = [{"allow": False, "access": "rwm"}]
    for major, minor in _DEVICES:
        rule: dict[str, object] = {"allow": True, "type": "c", "major": major, "access": "rwm"}
        rules.append(rule if minor is None else {**rule, "minor": minor})
    return rules
