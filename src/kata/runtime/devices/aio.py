"""How the VMM reads and writes disks, where the configuration leaves it to the host."""

from __future__ import annotations

from kata.linux import io_uring
from kata.runtime.config.settings import AIO_AUTO


def decide(configured: str, accelerator: str, *, io_uring_allowed: bool, direct: bool) -> str:
    """One of `kata.runtime.hypervisor.devices.AIO`.

    Args:
        configured: the setting `block_device_aio`.
        accelerator: "kvm" or "tcg".
        io_uring_allowed: whether the host's kernel lets processes use it.
        direct: whether the page cache is bypassed anyway, without which "native" would block the VMM's thread.
    """
    if configured != AIO_AUTO:
        return configured
    if accelerator != "kvm":
        return "threads"  # what an emulated guest asks for costs more than how the host does it
    if io_uring_allowed:
        return "io_uring"
    return "native" if direct else "threads"


def of_this_host(configured: str, accelerator: str, *, direct: bool) -> str:
    """What `decide` says here; looks at the kernel only where that matters."""
    matters = configured == AIO_AUTO and accelerator == "kvm"
    return decide(configured, accelerator, io_uring_allowed=matters and io_uring.is_allowed(), direct=direct)
