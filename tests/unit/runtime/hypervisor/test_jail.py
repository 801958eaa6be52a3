"""The parts of QEMU's jail: its root, its ids, what a program maps. From inside it is tests/vm/test_jail.py."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kata.errors import FailedPrecondition, NotFound, ResourceExhausted
from kata.linux.namespaces import inside_new
from kata.runtime.hypervisor.base import VmPlan
from kata.runtime.hypervisor.qemu import jail, libraries
from kata.runtime.hypervisor.qemu.jail import Root
from kata.runtime.hypervisor.qemu.jail_uid import JailUid

UID = 1_900_000_007
PYTHON = Path(os.path.realpath(sys.executable))


class TestPlan:
    @pytest.fixture(autouse=True)
    def _libraries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(jail, "libraries", lambda _program: ("/lib64/ld.so", "/lib/libc.so.6"))

    def test_qemu_its_libraries_and_the_guest_are_there_and_nothing_else(
        self, make_plan: Callable[..., VmPlan], tmp_path: Path
    ) -> None:
        plan = make_plan(image=Path("/images/root"), run_dir=tmp_path, share_dir=tmp_path)
        root = jail.root_of(plan, b"filter")
        files = {"/usr/bin/qemu-system-x86_64", "/lib64/ld.so", "/lib/libc.so.6", "/etc/ld.so.cache"}
        assert set(root.files) == files | {"/images/vmlinux", "/images/initrd", "/images/root"}
        assert str(plan.programs) in root.directories
        assert set(root.directories) - {str(plan.programs)} <= set(jail._FIRMWARE)
        assert (root.devices, root.sysfs, root.filter) == ((), False, b"filter")

    def test_kvm_only_for_who_uses_it(self, make_plan: Callable[..., VmPlan]) -> None:
        assert jail.root_of(make_plan(accelerator="kvm"), b"").devices == ("/dev/kvm",)

    def test_a_file_that_only_root_may_read(self, make_plan: Callable[..., VmPlan], tmp_path: Path) -> None:
        for name in ("vmm", "kernel", "initrd", "image"):
            (tmp_path / name).touch(mode=0o644)
        paths = {name: tmp_path / name for name in ("vmm", "kernel", "initrd", "image")}
        jail.check_readable(make_plan(**paths))
        paths["image"].chmod(0o600)
        with pytest.raises(FailedPrecondition, match=r"image: .*/image is not readable for all") as caught:
            jail.check_readable(make_plan(**paths))
        assert f"chmod o+r {paths['image']}" in (caught.value.hint or "")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
class TestRoot:
    @pytest.fixture(autouse=True)
    def _same_place(self) -> object:
        before = self.place()
        yield
        assert self.place() == before

    @staticmethod
    def place() -> tuple[object, ...]:
        return os.readlink("/proc/thread-self/ns/mnt"), os.stat("/").st_ino, os.stat("/").st_dev, os.getcwd()

    def test_it_has_what_was_planned_and_the_thread_comes_back(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("content")
        (tmp_path / "directory").mkdir()
        (tmp_path / "directory/inner").touch()
        files = (f"{tmp_path}/file", f"{tmp_path}/directory/inner")
        root = Root(files, (f"{tmp_path}/directory",), filter=b"filter")
        with inside_new("pid"), jail.inside(root, UID):
            assert set(os.listdir("/")) == {tmp_path.parts[1], "dev", "proc", "filter"}
            assert set(os.listdir("/..")) == set(os.listdir("/"))
            assert (tmp_path / "file").read_text() == "content"
            assert os.listdir(tmp_path)
            assert os.listdir(tmp_path / "directory") == ["inner"]
            assert Path("/filter").read_bytes() == b"filter"
            assert sorted(os.listdir("/dev")) == ["null", "urandom", "zero"]
            for path in ("/new", f"{tmp_path}/new", f"{tmp_path}/directory/new"):
                with pytest.raises(OSError, match="Read-only file system"):
                    Path(path).touch()
            with pytest.raises(OSError, match="Read-only file system"):
                (tmp_path / "file").write_text("changed")
        assert (tmp_path / "file").read_text() == "content"

    def test_other_threads_see_nothing_of_it(self, tmp_path: Path) -> None:
        seen: list[bool] = []
        begin, end = threading.Event(), threading.Event()

        def look() -> None:
            begin.wait(10)
            seen.append(os.path.isdir(tmp_path))
            end.set()

        thread = threading.Thread(target=look)
        thread.start()
        with jail.inside(Root(), UID):
            begin.set()
            assert end.wait(10)
            assert not os.path.exists(tmp_path)
        thread.join()
        assert seen == [True]

    def test_a_device_is_its_own(self) -> None:
        with jail.inside(Root(devices=("/dev/full",)), UID):
            info = os.stat("/dev/full")
        assert (info.st_uid, info.st_gid, info.st_mode & 0o777) == (UID, UID, 0o600)
        assert info.st_rdev == os.stat("/dev/full").st_rdev

    @pytest.mark.parametrize("root", [Root(files=("/no/such/file",)), Root(directories=("/no/such",))])
    def test_what_is_missing_is_named(self, root: Root) -> None:
        with pytest.raises(NotFound, match=r"/no/such.* does not exist"), jail.inside(root, UID):
            pass

    def test_what_is_mounted_there_is_nowhere_else(self, tmp_path: Path) -> None:
        before = Path("/proc/self/mountinfo").read_text()
        with jail.inside(Root(files=("/etc/passwd",)), UID):
            pass
        assert Path("/proc/self/mountinfo").read_text() == before


class TestIds:
    def test_each_has_one_of_its_own_until_it_is_given_back(self, tmp_path: Path) -> None:
        ids = range(UID, UID + 3)
        held = [JailUid(ids, str(tmp_path)) for _ in ids]
        assert {one.number for one in held} == set(ids)
        with pytest.raises(
            ResourceExhausted, match=f"all 3 user ids for QEMU are in use \\({UID}-{UID + 2}\\)"
        ) as caught:
            JailUid(ids, str(tmp_path))
        assert caught.value.hint == "enlarge jail_uid_range"
        held[1].release()
        held[1].release()
        assert JailUid(ids, str(tmp_path)).number == held[1].number
        for one in held:
            one.release()

    def test_two_processes_do_not_get_the_same(self, tmp_path: Path) -> None:
        program = "import sys; from kata.runtime.hypervisor.qemu.jail_uid import JailUid\n"
        program += f"one = JailUid(range({UID}, {UID + 2}), {str(tmp_path)!r})\n"
        program += "print(one.number, flush=True); sys.stdin.read()"
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout
            theirs = int(other.stdout.readline())
            ours = JailUid(range(UID, UID + 2), str(tmp_path))
            assert {ours.number, theirs} == {UID, UID + 1}
            with pytest.raises(ResourceExhausted):
                JailUid(range(UID, UID + 2), str(tmp_path))
            other.kill()
        again = JailUid(range(UID, UID + 2), str(tmp_path))
        assert again.number == theirs, "the kernel gives back what a killed process had"
        again.release()
        ours.release()

    def test_ids_that_a_user_namespace_does_not_have(self, tmp_path: Path) -> None:
        with pytest.raises(FailedPrecondition, match="does not have the ids 4294967295-4294967299") as caught:
            JailUid(range(4294967295, 4294967300), str(tmp_path))
        assert "jail_uid_range" in (caught.value.hint or "")


class TestLibraries:
    ANSWER = """\tlinux-vdso.so.1 (0x00007ffc)
\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f01)
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f02)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f03)
"""

    def test_what_the_loader_says(self) -> None:
        directory = "/lib/x86_64-linux-gnu"
        expected = (f"{directory}/libz.so.1", f"{directory}/libc.so.6", "/lib64/ld-linux-x86-64.so.2")
        assert libraries.parse(Path("/qemu"), self.ANSWER) == expected

    def test_a_library_that_is_missing(self) -> None:
        with pytest.raises(NotFound, match=r"/qemu: library libx\.so\.3 is not installed"):
            libraries.parse(Path("/qemu"), self.ANSWER + "\tlibx.so.3 => not found\n")

    def test_the_answer_is_kept_until_the_program_changes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = tmp_path / "program"
        program.write_bytes(PYTHON.read_bytes())
        program.chmod(0o755)
        found = libraries.libraries(program, str(tmp_path))
        assert any(Path(path).name == "libc.so.6" for path in found)
        assert all(os.path.isfile(path) for path in found)
        asked: list[Path] = []

        def ask(_loader: str, program: Path) -> str:
            asked.append(program)
            return self.ANSWER

        monkeypatch.setattr(libraries, "_ask", ask)
        assert libraries.libraries(program, str(tmp_path)) == found
        assert asked == []
        os.utime(program, ns=(1, 1))
        assert "/lib/x86_64-linux-gnu/libz.so.1" in libraries.libraries(program, str(tmp_path))
        assert asked == [program]

    @pytest.mark.parametrize("kept", ["", "[]", '{"key": 1, "libraries": ["/x"]}', '{"libraries": 3}', "\xff"])
    def test_what_was_kept_is_broken(self, tmp_path: Path, kept: str) -> None:
        first = libraries.libraries(PYTHON, str(tmp_path))
        (cache,) = tmp_path.glob("libraries-*.json")
        cache.write_bytes(kept.encode("latin-1"))
        assert libraries.libraries(PYTHON, str(tmp_path)) == first

    def test_a_script(self, tmp_path: Path) -> None:
        (tmp_path / "qemu").write_text('#!/bin/sh\nexec qemu-system-x86_64 "$@"\n' + "#" * 64)
        with pytest.raises(FailedPrecondition, match="is not an ELF file of 64 bits") as caught:
            libraries.libraries(tmp_path / "qemu", str(tmp_path))
        assert 'set jail_uid_range to ""' in (caught.value.hint or "")

    def test_no_such_program(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match=r"/qemu: No such file"):
            libraries.libraries(tmp_path / "qemu", str(tmp_path))
