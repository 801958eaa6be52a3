"""What PID 1 sets up in a guest before anything else can run: mounts, links in /dev, loopback, kernel modules.

An agent that runs as an ordinary process does nothing of this.
"""

from __future__ import annotations

import logging
import os
from typing import NamedTuple

from kata.agent.reaper import Reaper
from kata.errors import DeadlineExceeded
from kata.linux import cgroup, netdev
from kata.linux.mount import MS_NODEV, MS_NOEXEC, MS_NOSUID, mount

log = logging.getLogger(__name__)

CGROUP = "/sys/fs/cgroup"

_MODPROBE = "/sbin/modprobe"
#: Long, because a guest whose host is emulated as well takes minutes for what usually takes seconds.
_MODPROBE_TIMEOUT_S = 120.0
# The kernel loads these by itself on first use, but a template should have them loaded when it is saved.
# There is no udev to load drivers of hot-plugged devices, and most disks are formatted with ext4. virtio_blk is loaded
# already by an initrd that mounts a root disk, but not by one that is the whole root.
_MODULES = ("9p", "9pnet_virtio", "overlay", "virtio_blk", "virtio_scsi", "sd_mod", "ext4", "virtio_net", "virtiofs")


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
    """Mount the usual file systems, enable all cgroup controllers, and bring the loopback device up.

    Existing mounts (the initrd moves /dev, /proc and /sys) stay.

    Raises:
        OSError: the guest is unusable.
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
    """Load the modules that most sandboxes need.

    A kernel may have them built in, or do without; a guest that is too slow loads them when they are used.

    Returns:
        What modprobe complained about; "" for nothing.
    """
    try:
        result = await reaper.run([_MODPROBE, "-a", *_MODULES], timeout=_MODPROBE_TIMEOUT_S)
    except DeadlineExceeded as error:
        return error.message
    return result.output.strip() if result.status else ""


async def load_driver(reaper: Reaper, *module: str) -> None:
    """Load a module by its name or alias, with parameters. A module that does not exist is no error.

    Raises:
        DeadlineExceeded: modprobe did not end in time.
    """
    result = await reaper.run([_MODPROBE, "-q", *module], timeout=_MODPROBE_TIMEOUT_S)
    if result.output:
        log.warning("modprobe %s: %s", " ".join(module), result.output.strip())
