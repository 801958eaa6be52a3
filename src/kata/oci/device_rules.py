"""Rules of the device cgroup, as a spec has them in `linux.resources.devices`.

Source: runtime-spec, config-linux.md, "Allowed Device list".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: What stands for every number, like its absence.
_ANY = (-1, None)


def allows_everything(rules: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a rule allows all devices: the container is privileged."""
    return any(rule.get("allow") and _matches_all(rule) for rule in rules)


def allows_disk(rule: Mapping[str, Any], number: tuple[int, int]) -> bool:
    """Whether a rule allows the one block device with this (major, minor)."""
    same = rule.get("type") == "b" and (rule.get("major"), rule.get("minor")) == number
    return bool(rule.get("allow")) and same


def _matches_all(rule: Mapping[str, Any]) -> bool:
    return rule.get("type", "a") == "a" and rule.get("major") in _ANY and rule.get("minor") in _ANY
