"""A template is written from a VM that was saved, off the event loop; here without a VM."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kata.errors import ResourceExhausted
from kata.runtime.hypervisor.base import VmPlan
from kata.runtime.hypervisor.template import build, template

MIB = 1 << 20


class SavedVm:
    """A VM that has a page of memory when it is saved."""

    def __init__(self, plan: VmPlan, *, memory: int) -> None:
        self._memory = memory

    async def start(self) -> None:
        return

    async def save(self, state: int, timeout: float) -> bool:
        os.pwrite(self._memory, b"guest", 5 * MIB)
        os.pwrite(state, b"devices", 0)
        return True

    async def stop(self, timeout: float) -> None:
        return


@pytest.fixture
def plan(make_plan: Callable[..., VmPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VmPlan:
    monkeypatch.setattr("kata.runtime.hypervisor.factory.create", SavedVm)
    files = {name: tmp_path / name for name in ("vmm", "kernel", "initrd")}
    for path in files.values():
        path.touch()
    return make_plan(**files, run_dir=tmp_path)


async def ensure(plan: VmPlan, root: Path) -> template.Template:
    async def ready(vm: Any) -> None:
        return

    return await build.ensure(plan, root, make_ready=ready, progress=lambda said: None, lock_timeout=10)


async def test_what_was_saved_is_on_disk_and_only_root_may_look(plan: VmPlan, tmp_path: Path) -> None:
    root = tmp_path / "templates"
    with await ensure(plan, root) as made:
        assert os.pread(made.memory, 5, 5 * MIB) == b"guest"
        assert os.pread(made.state, 7, 0) == b"devices"
        assert os.fstat(made.memory).st_mode & 0o777 == 0o444
        assert made.directory.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in root.iterdir() if path.name != ".lock"] == [made.key]


async def test_the_event_loop_goes_on_meanwhile(plan: VmPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrote = []
    copy = build._copy

    def recorded(source: int, target: Path) -> int:
        wrote.append(threading.current_thread())
        return copy(source, target)

    monkeypatch.setattr(build, "_copy", recorded)
    (await ensure(plan, tmp_path / "templates")).close()
    assert len(wrote) == 2
    assert threading.main_thread() not in wrote


async def test_a_failure_to_write_leaves_nothing(plan: VmPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: int, target: Path) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "_copy", full)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ResourceExhausted, match="no space left on device"):
        await ensure(plan, tmp_path / "templates")
    assert [path.name for path in (tmp_path / "templates").iterdir()] == [".lock"]
    assert len(os.listdir("/proc/self/fd")) == before
