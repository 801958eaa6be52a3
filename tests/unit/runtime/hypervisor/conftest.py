"""A plan to start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kata.runtime.hypervisor.base import VmPlan


@pytest.fixture
def make_plan(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., VmPlan]:
    """Makes a small valid plan; keyword arguments replace its values."""
    programs = tmp_path_factory.mktemp("host")
    for name in ("ld-linux-x86-64.so.2", "virtiofsd", "setpriv"):
        (programs / name).touch()

    def make(**changes: Any) -> VmPlan:
        values: dict[str, Any] = {
            "sandbox_id": "abc",
            "run_dir": Path("/run/kata/abc"),
            "vmm": Path("/usr/bin/qemu-system-x86_64"),
            "kernel": Path("/images/vmlinux"),
            "initrd": Path("/images/initrd"),
            "accelerator": "tcg",
            "programs": programs,
        }
        return VmPlan(**(values | changes))

    return make
