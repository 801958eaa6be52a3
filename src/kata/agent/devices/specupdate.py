"""What the devices of a container are in the guest: one update of its spec for all of them, a pure function.

The spec has the host's numbers. They are all read before any is changed, so that a device whose number in the guest is
another one's on the host is not taken for that. Rules of the cgroup go by number, so they are changed along.

A device has up to three paths: on the host, in the guest, and in the container. The spec has the last one. It stays,
unless the container could not use the device there (`final_path`): programs find an IOMMU group by its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kata.errors import InvalidArgument

_Number = tuple[str, int, int]
# Of nodes that the spec does not have: what udev gives to those of disks, without a group that containers lack.
_MODE = 0o600


@dataclass(frozen=True)
class GuestDevice:
    """A device of the spec as the guest has it.

    Attributes:
        kind: "b" or "c".
        final_path: of its node in the container, if that is not where the spec has it; "" if it is.
    """

    kind: str
    major: int
    minor: int
    final_path: str = ""


@dataclass(frozen=True)
class GuestNode:
    """A device that only the guest knows of: what its driver made of something that the container was given."""

    path: str
    kind: str
    major: int
    minor: int


def update(
    spec: Mapping[str, Any], found: Mapping[str, GuestDevice], nodes: Iterable[GuestNode] = ()
) -> dict[str, Any]:
    """The spec with the guest's numbers and paths; the argument is not changed.

    Args:
        found: devices of the spec by the path that it gives them.
        nodes: devices to add.

    Raises:
        InvalidArgument: the spec has no such device, or one of another kind, or two of one number that are different
            devices in the guest, or two would be at one path.
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
            raise InvalidArgument(f"device {entry['path']} is of kind {device.kind!r} in the guest, not {number[0]!r}")
        known = numbers.setdefault(number, device)
        if (known.major, known.minor) != (device.major, device.minor):
            raise InvalidArgument(f"device {entry['path']} has the number of another one that is not the same")
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
    """Two devices at one path: only one would be there."""
    seen: dict[str, _Number] = {}
    for entry in devices:
        if seen.setdefault(str(entry.get("path")), _number(entry)) != _number(entry):
            raise InvalidArgument(f"two devices of the container would be at {entry['path']}")
