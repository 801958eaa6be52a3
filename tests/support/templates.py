"""A template that nothing was ever booted for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kata.runtime.hypervisor.template import template


def make_template(root: Path, key: str = "k", machine: Mapping[str, Any] | None = None) -> Path:
    """A whole template of one page; returns its directory."""
    directory = root / key
    directory.mkdir(parents=True)
    (directory / template.MEMORY).write_bytes(b"m" * 4096)
    (directory / template.STATE).write_bytes(b"state")
    template.write_manifest(directory, {"vcpus": 1, "memory_mib": 128} if machine is None else machine)
    return directory
