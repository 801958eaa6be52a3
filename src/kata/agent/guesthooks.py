"""Hooks of the guest image: programs that run around each container's life, in the agent's namespaces."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from kata.errors import InvalidArgument

KINDS = ("prestart", "poststart", "poststop")


def find(directory: str) -> dict[str, list[dict[str, Any]]]:
    """The hooks below a directory, by kind: the executable files in the directory of that name, in the order of names.

    Args:
        directory: absolute path, which need not exist; "" for none.

    Raises:
        InvalidArgument: the path is not absolute.
    """
    if not directory:
        return {}
    if not os.path.isabs(directory):
        raise InvalidArgument(f"guest hook path {directory!r} is not absolute")
    found: dict[str, list[dict[str, Any]]] = {}
    for kind in KINDS:
        for name in sorted(_names(f"{directory}/{kind}")):
            path = f"{directory}/{kind}/{name}"
            if os.path.isfile(path) and os.access(path, os.X_OK):
                found.setdefault(kind, []).append({"path": path, "args": [path, kind]})
    return found


def add(spec: Mapping[str, Any], hooks: Mapping[str, Sequence[Mapping[str, Any]]]) -> Mapping[str, Any]:
    """The spec with the guest's hooks after its own; the argument is not changed."""
    if not hooks:
        return spec
    own = spec.get("hooks") or {}
    return {**spec, "hooks": {**own, **{kind: [*own.get(kind, ()), *hooks[kind]] for kind in hooks}}}


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
