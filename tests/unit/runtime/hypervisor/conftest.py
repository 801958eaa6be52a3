"""A plan to start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kata.runtime.hypervisor.base import VmPlan


@pytest.fixture
def make_plan() -> Callable[..., VmPlan]:
    """Makes a small valid plan; keyword arguments replace its values."""

    def make(**changes: Any) -> VmPlan:
        values: dict[str, Any] = {
            "sandbox_id": "abc",
            "run_dir": Path("/run/kata/abc"),
            "vmm": Path("/usr/bin/qemu-system-x86_64"),
            "kernel": Path("/images/vmlinux"),
            "initrd": Path("/images/initrd"),
            "accelerator": "tcg",
        }
        return VmPlan(**(values | changes))

    return make
