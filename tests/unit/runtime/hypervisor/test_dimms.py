"""What hot-plugged memory is to QEMU; that a guest uses it is shown by the tests of containerd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kata.runtime.hypervisor.base import SHARE_VIRTIO_FS, VmPlan
from kata.runtime.hypervisor.qemu.device_commands import Command
from kata.runtime.hypervisor.qemu.resize import Resizer


@pytest.mark.parametrize(
    ("changes", "backend"),
    [
        ({}, {"qom-type": "memory-backend-ram"}),
        (
            {"huge_pages": True},
            {
                "qom-type": "memory-backend-memfd",
                "share": False,
                "hugetlb": True,
                "hugetlbsize": 2 << 20,
                "prealloc": True,
            },
        ),
    ],
)
async def test_a_growth(make_plan: Callable[..., VmPlan], changes: dict[str, Any], backend: dict[str, Any]) -> None:
    plan = make_plan(memory_mib=512, max_memory_mib=2048, memory_slots=2, **changes)
    commands: list[Command] = []

    async def execute(command: Command) -> object:
        commands.append(command)
        return []

    resized = await Resizer(plan, execute).resize(1, 640, timeout=1)
    assert (resized.memory_mib, resized.new_memory) == (640, True)
    [added] = [command.arguments for command in commands if command.name == "object-add"]
    assert added == {**backend, "id": "dimm1-memory", "size": 128 << 20}


async def test_who_serves_files_maps_huge_pages_too(make_plan: Callable[..., VmPlan], tmp_path: Path) -> None:
    plan = make_plan(
        memory_mib=512,
        max_memory_mib=2048,
        memory_slots=2,
        huge_pages=True,
        share_dir=tmp_path,
        share_fs=SHARE_VIRTIO_FS,
    )
    commands: list[Command] = []

    async def execute(command: Command) -> object:
        commands.append(command)
        return []

    await Resizer(plan, execute).resize(1, 640, timeout=1)
    assert [command.arguments["share"] for command in commands if command.name == "object-add"] == [True]
