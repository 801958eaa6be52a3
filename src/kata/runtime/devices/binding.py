"""Binding a PCI device of the host to vfio-pci, and to its own driver again.

Devices in a container's spec are bound by the administrator. A physical NIC in a pod's namespace is bound by the
sandbox, which restores its binding later: it is on the ledger.

Reference: the kernel's Documentation/ABI/testing/sysfs-bus-pci (driver_override, drivers_probe).
"""

from __future__ import annotations

import os

from kata.errors import FailedPrecondition

VFIO = "vfio-pci"
_NONE = "(null)"
_PROBE = "/sys/bus/pci/drivers_probe"


def driver_of(address: str, root: str = "") -> str:
    """The driver that a device is bound to, or ""."""
    try:
        return os.path.basename(os.readlink(f"{root}/sys/bus/pci/devices/{address}/driver"))
    except OSError:
        return ""


def override_of(address: str, root: str = "") -> str:
    """The driver that a device is forced to (`driver_override`), or "".

    Raises:
        OSError: there is no such device.
    """
    with open(f"{root}/sys/bus/pci/devices/{address}/driver_override", encoding="ascii") as file:
        chosen = file.read().strip()
    return "" if chosen == _NONE else chosen


def bind_to_vfio(address: str, root: str = "") -> None:
    """Unbind a device from its driver and bind it to vfio-pci. Blocks until the driver has released it.

    Args:
        address: such as "0000:3b:00.0".
        root: what /sys is below; another one for tests.

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
        raise FailedPrecondition(f"cannot unbind device {address} from its driver: {error.strerror}") from error
    if (found := driver_of(address, root)) != VFIO:
        raise FailedPrecondition(
            f"cannot bind device {address} to {VFIO}: its driver is now {found or 'none'}", hint=f"modprobe {VFIO}"
        )


def rebind(address: str, override: str, root: str = "") -> None:
    """Restore a device's binding. Idempotent; a device that is gone is ignored.

    Args:
        address: such as "0000:3b:00.0".
        override: its former `driver_override`, or "".
        root: what /sys is below; another one for tests.

    Raises:
        OSError: the kernel refuses.
    """
    device = f"{root}/sys/bus/pci/devices/{address}"
    if os.path.exists(device):
        _write(f"{device}/driver_override", f"{override}\n")
        # It may still be bound to its own driver, if it was never bound to vfio-pci.
        if driver_of(address, root) == VFIO:
            _write(f"{device}/driver/unbind", address)
        _write(f"{root}{_PROBE}", address)


def release_device(entry: str) -> None:
    """`rebind` by the ledger's entry, "ADDRESS" or "ADDRESS DRIVER_OVERRIDE"."""
    address, _, override = entry.partition(" ")
    rebind(address, override)


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)
