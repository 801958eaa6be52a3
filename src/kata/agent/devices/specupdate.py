"""A container's devices as the guest has them: one update of its spec for all of them, a pure function.

The spec has the host's numbers. They are all read before any is changed, so that a device whose number in the guest is
another device's on the host is not mistaken for it. Rules of the device cgroup are renumbered as well.

A device has up to three paths: on the host, in the guest, and in the container. The spec has the last one. It stays,
unless the container could not use the device there (`final_path`): programs find an IOMMU group by its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kata.errors import InvalidArgument

_Number = tuple[str, int, int]
# Permissions of added nodes: udev's for disks, without the group, which containers lack.
_MODE = 0o600


@dataclass(frozen=True)
class GuestDevice:
    """A device of the spec as the guest has it.

    Attributes:
        kind: "b" or "c".
        final_path: path of its node in the container; "" for that in the spec.
    """

    kind: str
    major: int
    minor: int
    final_path: str = ""


@dataclass(frozen=True)
class GuestNode:
    """A device node that only the guest knows: made by the driver of a device that the container was given."""

    path: str
    kind: str
    major: int
    minor: int


def update(
    spec: Mapping[str, Any], found: Mapping[str, GuestDevice], nodes: Iterable[GuestNode] = ()
) -> dict[str, Any]:
    """The spec with the guest's numbers and paths; the argument is not changed.

    Args:
        spec: the container's.
        found: devices of the spec by their path in it.
        nodes: devices to add.

    Raises:
        InvalidArgument: the spec lacks a device or has one of another type, two devices with one number are different
            ones in the guest, or two devices have one path.
    """
    nodes = list(nodes)
    if not found and not nodes:
        return dict(spec)
    linux = dict(spec.get("linux") or {})
    numbers: dict[_Number, GuestDevice] = {}
    missing = set(found)
    devices = []
    for entry in linux.get("devices") or ():
        device = found.get(str(entry.get("path")))
        if device is None:
            devices.append(entry)
            continue
        missing.discard(str(entry["path"]))
        number = _number(entry)
        if number[0] != device.kind:
            raise InvalidArgument(f"device {entry['path']} has type {device.kind!r} in the guest, not {number[0]!r}")
        known = numbers.setdefault(number, device)
        if (known.major, known.minor) != (device.major, device.minor):
            raise InvalidArgument(f"device {entry['path']} has the number of another device")
        path = device.final_path or entry["path"]
        devices.append({**entry, "path": path, "major": device.major, "minor": device.minor})
    if missing:
        raise InvalidArgument(f"the container's spec has no device {', '.join(sorted(missing))}")
    resources = dict(linux.get("resources") or {})
    rules = [_renumbered(rule, numbers) for rule in resources.get("devices") or ()]
    for node in nodes:
        number_of = {"type": node.kind, "major": node.major, "minor": node.minor}
        devices.append({"path": node.path, **number_of, "fileMode": _MODE, "uid": 0, "gid": 0})
        if rules:
            rules.append({"allow": True, **number_of, "access": "rwm"})
    _refuse_double_paths(devices)
    linux["devices"] = devices
    if rules:
        linux["resources"] = {**resources, "devices": rules}
    return {**spec, "linux": linux}


def _number(entry: Mapping[str, Any]) -> _Number:
    return str(entry.get("type")).replace("u", "c"), int(entry.get("major", -1)), int(entry.get("minor", -1))


def _renumbered(rule: Mapping[str, Any], numbers: Mapping[_Number, GuestDevice]) -> Mapping[str, Any]:
    device = numbers.get(_number(rule))
    return {**rule, "major": device.major, "minor": device.minor} if device else rule


def _refuse_double_paths(devices: Iterable[Mapping[str, Any]]) -> None:
    """Refuse two devices with one path: only one would exist.

    Raises:
        InvalidArgument: there are two.
    """
    seen: dict[str, _Number] = {}
    for entry in devices:
        if seen.setdefault(str(entry.get("path")), _number(entry)) != _number(entry):
            raise InvalidArgument(f"two devices of the container have the path {entry['path']}")
