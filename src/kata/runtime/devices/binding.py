"""A PCI device of the host lent to a virtual machine: bound to vfio-pci, and back to what drove it before.

What a container is given by its spec, its administrator binds. A network card in a pod's namespace is at work there, so
it is the sandbox that takes it from its driver, and gives it back: it is on the ledger.

Reference: the kernel's Documentation/ABI/testing/sysfs-bus-pci (driver_override, drivers_probe).
"""

from __future__ import annotations

import os

from kata.errors import FailedPrecondition

VFIO = "vfio-pci"
_NONE = "(null)"
_PROBE = "/sys/bus/pci/drivers_probe"


def driver_of(address: str, root: str = "") -> str:
    """What a device is bound to, or ""."""
    try:
        return os.path.basename(os.readlink(f"{root}/sys/bus/pci/devices/{address}/driver"))
    except OSError:
        return ""


def override_of(address: str, root: str = "") -> str:
    """The driver that somebody has chosen for a device, or "". Raises OSError."""
    with open(f"{root}/sys/bus/pci/devices/{address}/driver_override", encoding="ascii") as file:
        chosen = file.read().strip()
    return "" if chosen == _NONE else chosen


def lend(address: str, root: str = "") -> None:
    """Take a device from its driver and bind it to vfio-pci. Blocks until its driver has let go.

    Raises:
        FailedPrecondition: the kernel refuses, or has no vfio-pci.
    """
    device = f"{root}/sys/bus/pci/devices/{address}"
    try:
        _write(f"{device}/driver_override", f"{VFIO}\n")
        if driver_of(address, root) not in ("", VFIO):
            _write(f"{device}/driver/unbind", address)
        _write(f"{root}{_PROBE}", address)
    except OSError as error:
        raise FailedPrecondition(f"device {address} cannot be taken from its driver: {error.strerror}") from error
    if (found := driver_of(address, root)) != VFIO:
        raise FailedPrecondition(
            f"device {address} does not bind to {VFIO}: it has {found or 'no driver'} now", hint=f"modprobe {VFIO}"
        )


def give_back(address: str, override: str, root: str = "") -> None:
    """Have a device driven as before; one that has gone is fine. Idempotent.

    Raises:
        OSError: the kernel refuses.
    """
    device = f"{root}/sys/bus/pci/devices/{address}"
    if os.path.exists(device):
        _write(f"{device}/driver_override", f"{override}\n")
        # Its own driver may have it still: then nobody had begun to lend it.
        if driver_of(address, root) == VFIO:
            _write(f"{device}/driver/unbind", address)
        _write(f"{root}{_PROBE}", address)


def release_device(entry: str) -> None:
    """`give_back` by the ledger's entry, "ADDRESS" or "ADDRESS DRIVER_OVERRIDE"."""
    address, _, override = entry.partition(" ")
    give_back(address, override)


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)
