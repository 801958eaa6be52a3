"""Templates as files: what their key depends on, what is noticed, what is kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kata.errors import DeadlineExceeded, FailedPrecondition, KataError, NotFound, ResourceExhausted
from kata.hypervisor import template
from kata.hypervisor.base import VmPlan

Files = dict[str, Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    found = {name: tmp_path / name for name in ("qemu", "kernel", "initrd", "image")}
    for name, path in found.items():
        path.write_text(name)
    return found


@pytest.fixture
def plan(make_plan: Callable[..., VmPlan], files: Files) -> VmPlan:
    return make_plan(**files, share_dir=Path("/run/kata/abc/shared"), channels=("kata.rpc",))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "templates").mkdir()
    return tmp_path / "templates"


def make(root: Path, key: str = "k", machine: dict[str, Any] | None = None) -> Path:
    """A whole template of one page."""
    directory = root / key
    directory.mkdir()
    (directory / template.MEMORY).write_bytes(b"m" * 4096)
    (directory / template.STATE).write_bytes(b"state")
    template.write_manifest(directory, {"vcpus": 1, "memory_mib": 128} if machine is None else machine)
    return directory


def key(plan: VmPlan) -> str:
    return template.key_of(template.description(plan))


class TestKey:
    def test_whose_machine_it_is_does_not_matter(self, plan: VmPlan) -> None:
        other = replace(
            plan,
            sandbox_id="other",
            run_dir=Path("/elsewhere"),
            share_dir=Path("/elsewhere/shared"),
            environment=(("A", "b"),),
        )
        assert key(other) == key(plan)

    @pytest.mark.parametrize(
        "change",
        [
            {"memory_mib": 1024},
            {"vcpus": 2},
            {"max_vcpus": 4},
            {"cpu_features": "-avx"},
            {"cpu_model": "EPYC"},
            {"accelerator": "kvm"},
            {"kernel_params": ("agent.log=debug",)},
            {"debug": True},
            {"channels": ("kata.rpc", "log")},
            {"share_dir": None},
            {"image": None},
            {"seccomp": False},
        ],
        ids=str,
    )
    def test_what_the_machine_is_matters(self, plan: VmPlan, change: dict[str, Any]) -> None:
        assert key(replace(plan, **change)) != key(plan)

    @pytest.mark.parametrize("name", ["qemu", "kernel", "initrd", "image"])
    def test_another_file_is_another_template(self, plan: VmPlan, files: Files, name: str) -> None:
        before = key(plan)
        other = files[name].with_name("other")
        other.write_text(name)
        other.replace(files[name])
        assert key(plan) != before

    def test_a_missing_file_is_named(self, plan: VmPlan, files: Files) -> None:
        files["image"].unlink()
        with pytest.raises(NotFound, match=r"image: No such file"):
            template.description(plan)

    def test_a_description_survives_json(self, plan: VmPlan, root: Path) -> None:
        machine = template.description(plan)
        make(root, "k", machine)
        assert template.list_templates(root)[0].machine == machine
        assert template.key_of(template.list_templates(root)[0].machine) == template.key_of(machine)


class TestOpen:
    def test_a_whole_one(self, root: Path) -> None:
        make(root)
        with template.open_template(root, "k") as found:
            assert os.pread(found.memory, 2, 0) == b"mm"
            assert os.read(found.state, 9) == b"state", "qemu reads it from the beginning"
            assert found.size == 4096
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(found.memory)

    def test_none(self, root: Path) -> None:
        with pytest.raises(NotFound, match="no template k"):
            template.open_template(root, "k")
        with pytest.raises(NotFound):
            template.open_template(root / "nowhere", "k")

    @pytest.mark.parametrize("name", [template.MEMORY, template.STATE, template.MANIFEST])
    def test_a_missing_file(self, root: Path, name: str) -> None:
        (make(root) / name).unlink()
        with pytest.raises(FailedPrecondition, match=f"template k is broken: .*{name} is missing"):
            template.open_template(root, "k")

    def test_changed_memory(self, root: Path) -> None:
        path = make(root) / template.MEMORY
        info = path.stat()
        with path.open("r+b") as file:
            file.write(b"x")
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        with pytest.raises(FailedPrecondition, match="its memory was changed"):
            template.open_template(root, "k")

    def test_truncated_memory(self, root: Path) -> None:
        os.truncate(make(root) / template.MEMORY, 100)
        with pytest.raises(FailedPrecondition, match="its memory was changed"):
            template.open_template(root, "k")

    def test_replaced_memory(self, root: Path) -> None:
        directory = make(root)
        other = root / "other"
        other.write_bytes((directory / template.MEMORY).read_bytes())
        other.replace(directory / template.MEMORY)
        with pytest.raises(FailedPrecondition, match="its memory was changed"):
            template.open_template(root, "k")

    @pytest.mark.parametrize("content", [b"", b"stat", b"State", b"state and more"])
    def test_another_state(self, root: Path, content: bytes) -> None:
        (make(root) / template.STATE).write_bytes(content)
        with pytest.raises(FailedPrecondition, match="its state is not what was saved"):
            template.open_template(root, "k")

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"[]", b"null", b"{}", b'{"format": 1}', b'{"format": 0, "machine": {}}', b"[" * 9999, b"\xff"],
    )
    def test_another_manifest(self, root: Path, content: bytes) -> None:
        (make(root) / template.MANIFEST).write_bytes(content)
        with pytest.raises(FailedPrecondition, match="template k is broken: manifest"):
            template.open_template(root, "k")

    def test_no_descriptor_stays_open_after_a_failure(self, root: Path) -> None:
        (make(root) / template.STATE).write_bytes(b"")
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(FailedPrecondition):
            template.open_template(root, "k")
        assert len(os.listdir("/proc/self/fd")) == before

    def test_an_open_one_outlives_its_names(self, root: Path) -> None:
        make(root)
        with template.open_template(root, "k") as found:
            template.discard(root, "k")
            assert not (root / "k").exists()
            assert os.pread(found.memory, 2, 0) == b"mm"


class TestRemove:
    def test_only_the_one_that_failed(self, root: Path) -> None:
        make(root)
        with template.open_template(root, "k") as failed:
            template.discard(root, "k")
            make(root)
            template.discard(root, "k", failed.memory)
        template.open_template(root, "k").close()

    def test_what_is_not_there(self, root: Path) -> None:
        template.discard(root, "k")
        assert list(root.iterdir()) == []

    def test_where_nothing_can_be_removed(self, root: Path) -> None:
        with pytest.raises(FailedPrecondition, match="cannot be removed"):
            template.discard(root / "nowhere", "k")

    def test_the_most_recently_used_stay(self, root: Path) -> None:
        for number in range(4):
            directory = make(root, f"k{number}")
            os.utime(directory, (number, number))
        with template.open_template(root, "k0") as found:
            template.mark_used(found)
        assert template.prune(root, 2) == ["k2", "k1"]
        assert sorted(path.name for path in root.iterdir()) == ["k0", "k3"]

    def test_broken_ones_go(self, root: Path) -> None:
        make(root, "good")
        (make(root, "bad") / template.STATE).unlink()
        assert {listed.key: bool(listed.problem) for listed in template.list_templates(root)} == {
            "good": False,
            "bad": True,
        }
        assert template.prune(root, 5) == ["bad"]

    def test_what_dead_builders_left_goes(self, root: Path) -> None:
        (root / f"{template.BUILDING}x").mkdir()
        (root / f"{template.BUILDING}x/memory").write_bytes(b"m")
        make(root)
        template.sweep(root)
        assert [path.name for path in root.iterdir()] == ["k"]

    def test_all(self, root: Path) -> None:
        make(root)
        (root / f"{template.BUILDING}x").mkdir()
        template.remember_failure(root, "other", "why")
        assert template.destroy(root) == ["k"]
        assert list(root.iterdir()) == []


class TestFailures:
    def test_are_remembered_for_a_while(self, root: Path) -> None:
        assert template.recent_failure(root, "k") is None
        template.remember_failure(root, "k", "the reason")
        assert template.recent_failure(root, "k") == "the reason"
        old = time.time() - 3600
        os.utime(root / ".failed-k", (old, old))
        assert template.recent_failure(root, "k") is None
        template.sweep(root)
        assert list(root.iterdir()) == []

    def test_where_nothing_can_be_written(self, tmp_path: Path) -> None:
        template.remember_failure(tmp_path / "nowhere", "k", "the reason")
        assert template.recent_failure(tmp_path / "nowhere", "k") is None


class TestLock:
    async def test_excludes_and_has_a_deadline(self, root: Path) -> None:
        async with template.locked(root, 1.0):
            with pytest.raises(DeadlineExceeded, match="has been busy in"):
                async with template.locked(root, 0.1):
                    pass
        async with template.locked(root, 0.1):
            pass

    async def test_makes_the_directory_for_root_alone(self, tmp_path: Path) -> None:
        async with template.locked(tmp_path / "new/templates", 1.0):
            pass
        assert (tmp_path / "new/templates").stat().st_mode & 0o777 == 0o700

    async def test_a_place_that_cannot_be_written_to(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(KataError, match="templates cannot be kept in") as caught:
            async with template.locked(tmp_path / "file/templates", 1.0):
                pass
        assert caught.value.hint is not None


def test_room_on_the_disk(root: Path) -> None:
    template.require_room(root, 1)
    with pytest.raises(ResourceExhausted, match="MiB left, a template may need"):
        template.require_room(root, 1 << 62)
