"""Limits of the guest's kernel that a container takes for the host's, raised to those of a large host.

The kernel derives many of them from the memory that it boots with. Here that is the template's, however much memory the
VM has got since, and protects nobody: what has to be held back from containers is held back by their cgroup.

Constants, so that they hold for a VM restored from a template and after memory has been hot-plugged. The table is in
docs/guide/resources.md. Sources: the kernel's Documentation/admin-guide/sysctl/{fs,kernel,user,vm}.rst, getrlimit(2).
"""

from __future__ import annotations

import resource
from collections.abc import Mapping

#: Files that a process may have open: soft and hard limit. containerd's unit file sets it so.
_OPEN_FILES = 1 << 20

#: Resource limits of the agent. Processes whose spec has no limit inherit them, as they would inherit the engine's.
RLIMITS: Mapping[int, tuple[int, int]] = {
    resource.RLIMIT_NOFILE: (_OPEN_FILES, _OPEN_FILES),
    resource.RLIMIT_NPROC: (resource.RLIM_INFINITY, resource.RLIM_INFINITY),
    resource.RLIMIT_SIGPENDING: (1 << 18, 1 << 18),
}

#: Names as sysctl(8) has them.
SYSCTLS: Mapping[str, int] = {
    # What systemd sets on 64-bit hosts.
    "fs.file-max": (1 << 63) - 1,
    "fs.nr_open": 1_073_741_816,
    "kernel.pid_max": 1 << 22,
    # More than all pids, so that this is never the limit.
    "kernel.threads-max": 1 << 23,
    # What the kernel of a host with more than 100 GiB of memory sets.
    "fs.inotify.max_user_watches": 1 << 20,
    "fs.epoll.max_user_watches": 1 << 25,
    # What nodes are tuned to: a pod with many containers has one user, and a watcher or two in each container.
    "fs.inotify.max_user_instances": 8192,
    # What Fedora, Ubuntu and Arch Linux set; databases ask for a quarter of it.
    "vm.max_map_count": 1 << 20,
    **{
        f"user.max_{kind}_namespaces": 1 << 18 for kind in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
    },
}


def raise_limits() -> list[str]:
    """Set all of them. Only for PID 1 of a guest.

    Returns:
        What the kernel refused; it then keeps its own limit.
    """
    refused = []
    for name, value in SYSCTLS.items():
        try:
            with open(f"/proc/sys/{name.replace('.', '/')}", "w", encoding="ascii") as file:
                file.write(str(value))
        except OSError as error:
            refused.append(f"{name}: {error.strerror}")
    for number, limits in RLIMITS.items():
        try:
            resource.setrlimit(number, limits)
        except (OSError, ValueError) as error:
            refused.append(f"resource limit {number}: {error}")
    return refused
