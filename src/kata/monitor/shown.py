"""What the page is told of a sandbox: fields that are known, of bounded length, whoever has written them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Characters of a text, and entries of a list.
_MAX_TEXT = 256
_MAX_ENTRIES = 128

#: The states that the page knows; any other is "unknown".
_STATES = frozenset({"creating", "created", "running", "paused", "stopped"})


def text(value: object, most: int = _MAX_TEXT) -> str:
    """A text on one line; "" for what is none."""
    if not isinstance(value, str):
        return ""
    return "".join(one if one.isprintable() else " " for one in value[:most])


def integer(value: object) -> int | None:
    """An integer; None for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def state(value: object) -> str:
    """A state."""
    return value if isinstance(value, str) and value in _STATES else "unknown"


def mapping(value: object) -> Mapping[str, Any]:
    """A mapping; empty for what is none."""
    return value if isinstance(value, Mapping) else {}


def entries(value: object) -> Sequence[Mapping[str, Any]]:
    """A list of mappings; empty for what is none."""
    return [one for one in value[:_MAX_ENTRIES] if isinstance(one, Mapping)] if isinstance(value, list) else []


def description(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What a sandbox says of itself (`GET /sandbox`), as far as the page shows it."""
    vm, pod = mapping(answer.get("vm")), mapping(answer.get("pod"))
    return {
        "state": state(answer.get("state")),
        "engine": text(answer.get("engine")),
        "why_ended": text(answer.get("why_ended"), 2000),
        "pod": {name: text(pod.get(name)) for name in ("name", "namespace", "uid")},
        "vm": {
            "accelerator": text(vm.get("accelerator")),
            **{name: integer(vm.get(name)) for name in ("pid", "vcpus", "memory_mib")},
        },
        "containers": [
            {
                "id": text(one.get("id")),
                "name": text(one.get("name")),
                "state": state(one.get("state")),
                "exit_status": integer(one.get("exit_status")),
            }
            for one in entries(answer.get("containers"))
        ],
    }


def event(said: Mapping[str, Any]) -> dict[str, Any] | None:
    """An event (`GET /events`); None for what is none."""
    when = said.get("time")
    if isinstance(when, bool) or not isinstance(when, int | float):
        return None
    detail = mapping(said.get("detail"))
    return {
        "time": when,
        "type": text(said.get("type"), 40),
        "container": text(said.get("container")),
        "detail": {
            text(name, 40): integer(value) if integer(value) is not None else text(value, 100)
            for name, value in list(detail.items())[:8]
        },
    }
