"""The driver, with a small tree of its own in place of Linux's, whose Makefile makes an ELF file of a few bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from kata import command
from kata.errors import DeadlineExceeded, FailedPrecondition, Internal, NotFound, ResourceExhausted, Unavailable
from kata.kernel_build import build as kernel_build
from kata.kernel_build import fragments, options, store
from kata.kernel_build.build import BuildOptions
from kata.kernel_build.fragments import Patch
from kata.osbuilder import build as image_build
from kata.osbuilder.packages import Package, PackageCache
from kata.osbuilder.store import BUILDING, lock

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

CONFIG = "allconfig"
#: Takes all options of the fragments but those in `refused`, and adds what Kconfig would by itself.
MAKEFILE = """\
allnoconfig:
	@grep -vFf $(CURDIR)/refused $(KCONFIG_ALLCONFIG) >$(O)/.config; \\
	printf 'CONFIG_NF_NAT_FTP=y\\nCONFIG_NF_NAT_TFTP=y\\n' >>$(O)/.config
vmlinux:
	@echo '  CC      kernel.o'
	@cat $(CURDIR)/kernel >$(O)/vmlinux; touch $(O)/modules.builtin $(O)/modules.builtin.modinfo
	@test ! -e $(CURDIR)/broken || { echo 'kernel.c:1: error: broken'; exit 1; }
"""


def elf(*, pvh: bool = True) -> bytes:
    """An x86-64 ELF file with one program header, a note."""
    note = struct.pack("<III", 4, 4, 18 if pvh else 17) + b"Xen\0" + bytes(4)
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    )
    return header + struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(note), len(note), 4) + note


class Linux(NamedTuple):
    """A made-up archive with sources, and how often each step was done."""

    options: BuildOptions
    tree: Path
    pack: Callable[[], Package]
    steps: list[str]


@pytest.fixture
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Linux:
    tree = tmp_path / "linux-source"
    tree.mkdir()
    (tree / "Makefile").write_text(MAKEFILE)
    (tree / "refused").write_text("CONFIG_NOTHING\n")
    (tree / "kernel").write_bytes(elf())
    (tree / "fs").mkdir()
    (tree / "fs/file.c").write_text("one\ntwo\n")
    build_options = BuildOptions(kernels=tmp_path / "kernels", cache=tmp_path / "cache", jobs=1)
    debs = tmp_path / "cache/debs"
    debs.mkdir(parents=True)
    packages: list[Package] = []

    def pack() -> Package:
        source = tmp_path / "deb/usr/src"
        source.mkdir(parents=True, exist_ok=True)
        (tmp_path / "deb/DEBIAN").mkdir(exist_ok=True)
        (tmp_path / "deb/DEBIAN/control").write_text(
            "Package: linux-source-6.12\nVersion: 6.12.118-1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
        )
        documents = tmp_path / "deb/usr/share/doc/linux-source-6.12"
        documents.mkdir(parents=True, exist_ok=True)
        (documents / "copyright").write_text("GPL-2\n")
        archive = source / "linux-source-6.12.tar.xz"
        subprocess.run(["tar", "-C", str(tmp_path), "-cJf", str(archive), "linux-source"], check=True)
        deb = debs / "linux-source-6.12.deb"
        subprocess.run(
            ["dpkg-deb", "-Zgzip", "--build", str(tmp_path / "deb"), str(deb)], check=True, capture_output=True
        )
        content = deb.read_bytes()
        packages[:] = [
            Package("linux-source-6.12", "6.12.118-1", deb.name, len(content), hashlib.sha256(content).hexdigest())
        ]
        return packages[0]

    steps: list[str] = []
    monkeypatch.setattr(kernel_build, "_check_host", lambda: None)
    monkeypatch.setattr(fragments, "patches", lambda own: ())
    monkeypatch.setattr(PackageCache, "kernel_source", lambda _: packages[0])
    monkeypatch.setattr(PackageCache, "update", lambda _: steps.append("update"))
    # Nothing to strip in what is made here.
    real = command.run

    def run(argv: list[str], **more: object) -> str:
        if argv[0] == "strip":
            shutil.copyfile(argv[-1], argv[-2])
            return ""
        return real(argv, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(kernel_build, "run", run)
    pack()
    return Linux(build_options, tree, pack, steps)


def test_from_sources_to_a_kernel_of_this_host(linux: Linux) -> None:
    kernel = kernel_build.install(linux.options, linux.steps.append)
    assert kernel == store.find(linux.options.kernels, kernel.version)
    assert kernel.release == "6.12.118-kata2"
    assert kernel.vmlinux.read_bytes() == elf()
    config = options.parse((kernel.directory / store.CONFIG).read_text(), "x")
    assert config["LOCALVERSION"] == '"-kata2"'
    assert kernel.copyright == "GPL-2\n"
    manifest = store.read_manifest(kernel.directory)
    assert manifest["package"]["version"] == "6.12.118-1"
    assert linux.steps == ["unpacking the sources", "configuring", "compiling", f"kernel {kernel.version} is ready"]
    assert not list(linux.options.cache.glob(f"{BUILDING}*"))

    del linux.steps[:]
    assert kernel_build.install(linux.options, linux.steps.append) == kernel
    assert linux.steps == []


def test_what_is_there_is_not_made_again(linux: Linux) -> None:
    prepared = kernel_build.setup(linux.options, linux.steps.append)
    assert kernel_build.setup(linux.options, linux.steps.append) == prepared
    assert linux.steps == ["unpacking the sources", "configuring"]
    assert not prepared.vmlinux.exists()
    assert kernel_build.build(linux.options).vmlinux.read_bytes() == elf()


def test_other_sources_replace_those_before(linux: Linux) -> None:
    before = kernel_build.build(linux.options)
    (linux.tree / "fs/file.c").write_text("three\n")
    linux.pack()
    after = kernel_build.build(linux.options)
    # In the same place: what a compiler cache knows of them is by their path.
    assert after.tree == before.tree
    assert (after.tree / "fs/file.c").read_text() == "three\n"
    assert after.objects != before.objects
    assert not before.objects.exists()
    assert not list(linux.options.cache.glob(f"{BUILDING}*"))


def test_objects_of_a_killed_build_are_made_anew(linux: Linux) -> None:
    prepared = kernel_build.build(linux.options)
    (prepared.objects / "half.o").touch()
    (prepared.objects / ".unfinished").touch()
    prepared.vmlinux.unlink()
    assert kernel_build.build(linux.options).vmlinux.exists()
    assert not (prepared.objects / "half.o").exists()


def test_a_tampered_package_is_not_unpacked(linux: Linux, monkeypatch: pytest.MonkeyPatch) -> None:
    deb = linux.options.cache / "debs/linux-source-6.12.deb"
    deb.write_bytes(deb.read_bytes()[:-1] + b"x")
    asked: list[str] = []

    def download(_: PackageCache, packages: list[Package]) -> None:
        asked.extend(package.name for package in packages)
        raise Unavailable("no network")

    monkeypatch.setattr(PackageCache, "download", download)
    with pytest.raises(Unavailable, match="no network"):
        kernel_build.setup(linux.options, linux.steps.append)
    # Once as the lists have it, once with newer lists.
    assert asked == ["linux-source-6.12"] * 2
    assert not (linux.options.cache / "tree").exists()


def test_an_option_that_the_kernel_does_not_take(linux: Linux) -> None:
    (linux.tree / "refused").write_text("CONFIG_WIREGUARD=\n")
    linux.pack()
    with pytest.raises(FailedPrecondition, match="CONFIG_WIREGUARD is n instead of y") as caught:
        kernel_build.setup(linux.options)
    assert caught.value.hint


def test_a_configuration_that_lacks_what_a_guest_needs(linux: Linux, tmp_path: Path) -> None:
    own = tmp_path / "own.conf"
    own.write_text("# CONFIG_9P_FS is not set\n")
    mine = BuildOptions(linux.options.kernels, linux.options.cache, own_fragments=(own,))
    with pytest.raises(FailedPrecondition, match=r"a guest does not work .* CONFIG_9P_FS is n instead of y \(shared"):
        kernel_build.install(mine)
    assert not linux.options.kernels.exists()


def test_whoever_configures_may_leave_out_what_engines_use(linux: Linux, tmp_path: Path) -> None:
    own = tmp_path / "own.conf"
    own.write_text("# CONFIG_IP_VS is not set\n")
    mine = BuildOptions(linux.options.kernels, linux.options.cache, own_fragments=(own,))
    assert kernel_build.install(mine).version != kernel_build.install(linux.options).version


def test_a_whole_configuration(linux: Linux, tmp_path: Path) -> None:
    whole = tmp_path / "config"
    whole.write_text("CONFIG_PVH=y\n")
    with pytest.raises(FailedPrecondition, match="a guest does not work"):
        kernel_build.setup(BuildOptions(linux.options.kernels, linux.options.cache, config=whole))


def test_patches_are_applied_in_order(linux: Linux, monkeypatch: pytest.MonkeyPatch) -> None:
    def patch(old: str, new: str) -> bytes:
        return f"--- a/fs/file.c\n+++ b/fs/file.c\n@@ -1,2 +1,2 @@\n-{old}\n+{new}\n two\n".encode()

    both = (Patch("1.patch", patch("one", "1")), Patch("2.patch", patch("1", "uno")))
    monkeypatch.setattr(fragments, "patches", lambda own: both)
    prepared = kernel_build.setup(linux.options, linux.steps.append)
    assert (prepared.tree / "fs/file.c").read_text() == "uno\ntwo\n"
    assert linux.steps[1:3] == ["applying 1.patch", "applying 2.patch"]

    monkeypatch.setattr(fragments, "patches", lambda own: both[::-1])
    with pytest.raises(FailedPrecondition, match=r"2\.patch does not apply to Linux 6\.12\.118"):
        kernel_build.setup(linux.options)
    assert (prepared.tree / "fs/file.c").read_text() == "uno\ntwo\n"
    assert not list(linux.options.cache.glob(f"{BUILDING}*"))


def test_a_kernel_that_does_not_compile_is_not_installed(linux: Linux) -> None:
    (linux.tree / "broken").touch()
    linux.pack()
    with pytest.raises(Internal, match=r"kernel\.c:1: error: broken"):
        kernel_build.install(linux.options)
    assert not linux.options.kernels.exists()
    # Nor by the next try, which finds the file that make has left.
    with pytest.raises(Internal, match="broken"):
        kernel_build.install(linux.options)


def test_a_kernel_that_qemu_cannot_enter(linux: Linux) -> None:
    (linux.tree / "kernel").write_bytes(elf(pvh=False))
    linux.pack()
    with pytest.raises(FailedPrecondition, match="no PVH entry"):
        kernel_build.install(linux.options)
    assert not linux.options.kernels.exists()


def test_no_space_is_told_before_anything_is_begun(linux: Linux, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_build, "_SPACE", 1 << 60)
    with pytest.raises(ResourceExhausted, match=r"need \d+ GB, and .* GB left"):
        kernel_build.setup(linux.options)
    assert not (linux.options.cache / "tree").exists()


@pytest.mark.parametrize("step", ["_unpack", "_configure", "_make"])
def test_a_disk_that_becomes_full(linux: Linux, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: object, **__: object) -> None:
        (linux.options.cache / f"{BUILDING}x").mkdir()
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere")

    monkeypatch.setattr(kernel_build, step, full)
    with pytest.raises(ResourceExhausted, match="no space left on the file system of /somewhere"):
        kernel_build.install(linux.options)
    assert not list(linux.options.cache.glob(f"{BUILDING}*"))
    assert not linux.options.kernels.exists()


def test_what_the_host_lacks_is_named_with_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None if name in ("flex", "bison") else name)
    monkeypatch.setattr("kata.kernel_build.plan.HEADERS", {"/nonexistent/gelf.h": "libelf-dev"})
    with pytest.raises(NotFound, match=r"needs bison, flex, /nonexistent/gelf\.h") as caught:
        kernel_build._check_host()
    assert caught.value.hint == "run: apt-get install bison flex libelf-dev"


def test_a_build_that_waits_says_for_whom(linux: Linux, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_build, "_LOCK_TIMEOUT_S", 0.1)
    with lock(linux.options.cache, timeout=0), pytest.raises(DeadlineExceeded, match="has been changing"):
        kernel_build.build(linux.options, linux.steps.append)
    assert linux.steps[0].startswith(f"waiting for process {os.getpid()} (")


def test_compiling_keeps_no_image_from_being_built() -> None:
    """It has a directory of its own, and with it a lock."""
    assert BuildOptions().cache.parent == image_build.BuildOptions().cache
