"""What PID 1 does to a machine before anything else can run in it.

Nothing here is done by an agent that runs as an ordinary process.
"""

from __future__ import annotations

import logging
import os
from typing import NamedTuple

from kata.agent.reaper import Reaper
from kata.errors import DeadlineExceeded
from kata.linux import cgroup, netdev
from kata.linux.mount import MS_NODEV, MS_NOEXEC, MS_NOSUID, mount

_log = logging.getLogger(__name__)

CGROUP = "/sys/fs/cgroup"

_MODPROBE = "/sbin/modprobe"
# Seconds; long, because a guest whose host is emulated as well needs a minute for what usually takes a tenth of one.
_MODULE_TIMEOUT = 120.0
# The kernel loads these by itself on first use, but a template should have them loaded when it is saved.
# No udev loads the drivers of what is plugged in, and ext4 is what most disks are formatted with.
_MODULES = ("9p", "9pnet_virtio", "overlay", "virtio_scsi", "sd_mod", "ext4", "virtio_net", "virtiofs")


class Mount(NamedTuple):
    """One entry of the plan below."""

    fstype: str
    target: str
    flags: int
    data: str = ""


MOUNTS = (
    Mount("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC),
    Mount("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC),
    Mount("devtmpfs", "/dev", MS_NOSUID, "mode=755"),
    Mount("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "ptmxmode=0666,mode=620,gid=5"),
    Mount("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777"),
    Mount("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755"),
    Mount("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777"),
    Mount("cgroup2", CGROUP, MS_NOSUID | MS_NODEV | MS_NOEXEC, "nsdelegate"),
)

_LINKS = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}


def prepare() -> None:
    """Mount what a Linux system has mounted, offer all cgroup controllers, and bring the loopback device up.

    What is mounted already (the initrd moves /dev, /proc and /sys over) stays.

    Raises:
        OSError: this machine is of no use then.
    """
    os.umask(0o022)
    for entry in MOUNTS:
        if not os.path.ismount(entry.target):
            os.makedirs(entry.target, exist_ok=True)
            mount(entry.fstype, entry.target, entry.fstype, entry.flags, entry.data)
    for link, target in _LINKS.items():
        if not os.path.lexists(link):
            os.symlink(target, link)
    cgroup.enable_controllers(CGROUP)
    netdev.set_up("lo")


async def load_modules(reaper: Reaper) -> str:
    """Load the modules that every sandbox needs; returns what modprobe had to say, "" if all is well.

    A kernel may have them built in, or be tailored to do without; too slow a guest loads them when they are used.
    """
    try:
        result = await reaper.run([_MODPROBE, "-a", *_MODULES], timeout=_MODULE_TIMEOUT)
    except DeadlineExceeded as error:
        return error.message
    return result.output.strip() if result.status else ""


async def load_driver(reaper: Reaper, *module: str) -> None:
    """Load a module by its name or alias, with parameters. That the kernel has none is for others to notice."""
    result = await reaper.run([_MODPROBE, "-q", *module], timeout=_MODULE_TIMEOUT)
    if result.output:
        _log.warning("modprobe %s: %s", " ".join(module), result.output.strip())
