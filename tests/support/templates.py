"""A template without a boot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kata.runtime.hypervisor.template import template


def make_template(root: Path, key: str = "k", vm: Mapping[str, Any] | None = None) -> Path:
    """Make a complete template of one page; return its directory.

    Args:
        root: the directory of templates.
        key: the template's.
        vm: for the manifest; None for a small one.
    """
    directory = root / key
    directory.mkdir(parents=True)
    (directory / template.MEMORY).write_bytes(b"m" * 4096)
    (directory / template.STATE).write_bytes(b"state")
    template.write_manifest(directory, {"vcpus": 1, "memory_mib": 128} if vm is None else vm)
    return directory
