from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kata.kernel_build import store
from kata.osbuilder.kernel import CustomKernel


@pytest.fixture
def publish(tmp_path: Path) -> Callable[[str], CustomKernel]:
    """Publishes a kernel of a few bytes in `tmp_path/kernels`."""

    def publish(version: str) -> CustomKernel:
        files = {}
        for name in store.FILES:
            files[name] = tmp_path / name
            files[name].write_text(f"{version} {name}")
        files[store.CONFIG].write_text("CONFIG_PVH=y\n")
        facts = {"release": version.rpartition("-")[0], "date": 7, "package": {"version": "6.12.118-1"}}
        return store.publish(tmp_path / "kernels", version, files, facts)

    return publish
