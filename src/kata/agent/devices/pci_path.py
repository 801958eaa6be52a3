"""PCI paths: a device identified by the slots on the way to it, because the guest assigns bus numbers.

"09/1f" is the device in slot 0x1f behind the bridge in slot 9 of the root bus; ".F" after a slot is a function other
than 0. Notation: Kata Containers.
"""

from __future__ import annotations

import glob
import os
import re

from kata.errors import InvalidArgument

#: The root bus below /sys/devices, where ACPI describes the machine; else it belongs to a platform device.
_ROOT_BUS, _OF_PLATFORM = "pci0000:00", "platform/*/pci0000:00"

_ELEMENT = re.compile(r"([01][0-9a-f])(?:\.([0-7]))?")
_MAX_DEPTH = 8


def parse(path: str) -> list[str]:
    """Slot and function of each element as sysfs writes them: ["09.0", "1f.0"].

    Raises:
        InvalidArgument: invalid PCI path.
    """
    elements = path.split("/")
    matches = [_ELEMENT.fullmatch(element) for element in elements]
    if len(elements) > _MAX_DEPTH or not all(matches):
        raise InvalidArgument(f"invalid PCI path {path!r}", hint='use slots, such as "02/03" or "02/03.1"')
    return [f"{match[1]}.{match[2] or 0}" for match in matches if match]


def root_bus(sys: str) -> str:
    """The directory of the root bus in the sysfs at `sys`."""
    return next(iter(glob.glob(f"{sys}/devices/{_OF_PLATFORM}")), f"{sys}/devices/{_ROOT_BUS}")


def resolve(path: str, root: str) -> str | None:
    """The device's directory in sysfs, or None if it is not there (yet).

    Args:
        path: of the device.
        root: as `root_bus` finds it.

    Raises:
        InvalidArgument: invalid PCI path, or a device on the way is not a bridge.
    """
    directory = root
    bus = root.rpartition("pci")[2]
    for index, element in enumerate(parse(path)):
        if index:
            try:
                buses = os.listdir(f"{directory}/pci_bus")
            except OSError:
                return None
            if len(buses) != 1:
                raise InvalidArgument(f"PCI path {path!r}: device {directory} has {len(buses)} buses instead of one")
            bus = buses[0]
        directory = f"{directory}/{bus}:{element}"
    return directory if os.path.isdir(directory) else None
