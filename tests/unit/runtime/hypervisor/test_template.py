"""Templates as files: what their key depends on, what is noticed, what is kept."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kata.errors import FailedPrecondition, NotFound
from kata.runtime.hypervisor.base import VmPlan
from kata.runtime.hypervisor.template import store, template
from tests.support.templates import make_template
from tests.support.writing import ways_to_write

Files = dict[str, Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    found = {name: tmp_path / name for name in ("vmm", "kernel", "initrd", "image")}
    for name, path in found.items():
        path.write_text(name)
    return found


@pytest.fixture
def plan(make_plan: Callable[..., VmPlan], files: Files) -> VmPlan:
    return make_plan(**files, share_dir=Path("/run/shared"), root_dir=Path("/run/root"), channels=("kata.rpc",))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "templates").mkdir()
    return tmp_path / "templates"


def key(plan: VmPlan) -> str:
    return template.key_of(template.description(plan))


class TestKey:
    def test_whose_vm_it_is_does_not_matter(self, plan: VmPlan) -> None:
        other = replace(
            plan,
            sandbox_id="other",
            run_dir=Path("/elsewhere"),
            share_dir=Path("/elsewhere/shared"),
            root_dir=Path("/elsewhere/root"),
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
            {"accelerator": "kvm"},
            {"kernel_params": ("agent.log=debug",)},
            {"debug": True},
            {"channels": ("kata.rpc", "log")},
            {"share_dir": None},
            {"root_dir": None},
            {"image": None},
            {"seccomp": False},
            {"template_domain": "tenant"},
        ],
        ids=str,
    )
    def test_what_the_vm_is_matters(self, plan: VmPlan, change: dict[str, Any]) -> None:
        assert key(replace(plan, **change)) != key(plan)

    @pytest.mark.parametrize("name", ["vmm", "kernel", "initrd", "image"])
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
        vm = template.description(plan)
        make_template(root, "k", vm)
        assert store.list_templates(root)[0].vm == vm
        assert template.key_of(store.list_templates(root)[0].vm) == template.key_of(vm)


class TestOpen:
    def test_a_whole_one(self, root: Path) -> None:
        make_template(root)
        with template.open_template(root, "k") as found:
            assert os.pread(found.memory, 2, 0) == b"mm"
            assert os.read(found.state, 9) == b"state", "qemu reads it from the beginning"
            assert found.size == 4096
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(found.memory)

    @pytest.mark.root
    def test_what_a_vmm_only_reads_nobody_can_open_for_writing_by_it(self, root: Path) -> None:
        directory = make_template(root)
        (directory / template.MANIFEST).unlink()
        template.write_manifest(directory, {}, read_only=True)
        with template.open_template(root, "k") as found:
            path = f"/proc/self/fd/{found.memory}"
            for mode in (os.O_WRONLY, os.O_RDWR):
                with pytest.raises(OSError, match="Read-only file system"):
                    os.open(path, mode)
            again = os.open(path, os.O_RDONLY)
            for fd in (found.memory, again):
                for way in ways_to_write.values():
                    with pytest.raises(OSError):
                        way(fd)
            os.close(again)
            assert os.path.samestat(os.fstat(found.memory), (directory / template.MEMORY).stat())

    @pytest.mark.parametrize(("read_only", "mode"), [(False, os.O_RDWR), (True, os.O_RDONLY)])
    def test_memory_is_opened_as_the_manifest_says(self, root: Path, read_only: bool, mode: int) -> None:
        directory = make_template(root)
        (directory / template.MANIFEST).unlink()
        template.write_manifest(directory, {}, read_only=read_only)
        with template.open_template(root, "k") as found:
            assert fcntl.fcntl(found.memory, fcntl.F_GETFL) & os.O_ACCMODE == mode

    def test_none(self, root: Path) -> None:
        with pytest.raises(NotFound, match="template k does not exist"):
            template.open_template(root, "k")
        with pytest.raises(NotFound):
            template.open_template(root / "nowhere", "k")

    @pytest.mark.parametrize("name", [template.MEMORY, template.STATE, template.MANIFEST])
    def test_a_missing_file(self, root: Path, name: str) -> None:
        (make_template(root) / name).unlink()
        with pytest.raises(FailedPrecondition, match=f"template k is broken: .*{name} is missing"):
            template.open_template(root, "k")

    def test_changed_memory(self, root: Path) -> None:
        path = make_template(root) / template.MEMORY
        info = path.stat()
        with path.open("r+b") as file:
            file.write(b"x")
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        with pytest.raises(FailedPrecondition, match="its memory was changed"):
            template.open_template(root, "k")

    def test_truncated_memory(self, root: Path) -> None:
        os.truncate(make_template(root) / template.MEMORY, 100)
        with pytest.raises(FailedPrecondition, match="its memory was changed"):
            template.open_template(root, "k")

    def test_replaced_memory(self, root: Path) -> None:
        directory = make_template(root)
        other = root / "other"
        other.write_bytes((directory / template.MEMORY).read_bytes())
        other.replace(directory / template.MEMORY)
        with pytest.raises(FailedPrecondition, match="its memory was changed"):
            template.open_template(root, "k")

    @pytest.mark.parametrize("content", [b"", b"stat", b"State", b"state and more"])
    def test_another_state(self, root: Path, content: bytes) -> None:
        (make_template(root) / template.STATE).write_bytes(content)
        with pytest.raises(FailedPrecondition, match="its state is not what was saved"):
            template.open_template(root, "k")

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"[]", b"null", b"{}", b'{"format": 1}', b'{"format": 0, "vm": {}}', b"[" * 9999, b"\xff"],
    )
    def test_another_manifest(self, root: Path, content: bytes) -> None:
        (make_template(root) / template.MANIFEST).write_bytes(content)
        with pytest.raises(FailedPrecondition, match="template k is broken: manifest"):
            template.open_template(root, "k")

    def test_no_descriptor_stays_open_after_a_failure(self, root: Path) -> None:
        (make_template(root) / template.STATE).write_bytes(b"")
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(FailedPrecondition):
            template.open_template(root, "k")
        assert len(os.listdir("/proc/self/fd")) == before

    def test_an_open_one_outlives_its_names(self, root: Path) -> None:
        make_template(root)
        with template.open_template(root, "k") as found:
            store.discard(root, "k")
            assert not (root / "k").exists()
            assert os.pread(found.memory, 2, 0) == b"mm"
