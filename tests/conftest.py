"""What a test's marker asks of the machine; a test that cannot run here says what is missing."""

from __future__ import annotations

import os
import shutil

import pytest

from kata.runtime.config.loader import load


def _missing(marker: str) -> str | None:
    """What this machine lacks for tests of a marker, or None."""
    if os.geteuid() != 0:
        return "root"
    if marker in ("vm", "containerd"):
        hypervisor = load().config.hypervisor
        for path in (hypervisor.path, hypervisor.kernel, hypervisor.initrd, hypervisor.image):
            if not path.exists():
                return f"{path}"
    if marker == "containerd":
        return next((name for name in ("containerd", "ctr", "runc") if shutil.which(name) is None), None)
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in ("root", "vm", "containerd"):
        if item.get_closest_marker(marker) and (what := _missing(marker)):
            pytest.skip(f"needs {what}")
