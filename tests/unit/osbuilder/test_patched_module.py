"""The patched module: from the cache, or made; and what it is made of."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import pytest

from kata.errors import FailedPrecondition, Internal
from kata.osbuilder import inputs, patched_module, rootfs
from kata.osbuilder.packages import Package, PackageCache

RELEASE = "6.12.118+deb13-amd64"
KERNEL = Package(f"linux-image-{RELEASE}", "6.12.118-1", "k.deb", 1, "00" * 32)
SOURCE = Package("linux-source-6.12", "6.12.118-1", "s.deb", 1, "11" * 32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with Debian's module."""
    module = tmp_path / "root" / rootfs.MODULES / RELEASE / "kernel/fs/9p/9p.ko.xz"
    module.parent.mkdir(parents=True)
    module.write_text("Debian's")
    return tmp_path / "root"


@pytest.fixture
def cache(tmp_path: Path) -> PackageCache:
    return PackageCache(tmp_path / "cache")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The releases for which the module was compiled, which takes packages and a minute."""
    made: list[str] = []

    def compile_(root: Path, release: str) -> None:
        made.append(release)
        module = root / "patched/fs/9p/9p.ko"
        module.parent.mkdir(parents=True)
        module.write_text(f"{len(made)}")

    monkeypatch.setattr(patched_module, "_fetch", lambda *_: ([], SOURCE))
    monkeypatch.setattr(rootfs, "unpack", lambda *_: None)
    monkeypatch.setattr(rootfs, "install_applets", lambda _: None)
    monkeypatch.setattr(patched_module, "_unpack_sources", lambda *_: None)
    monkeypatch.setattr(patched_module, "_compile", compile_)
    return made


def installed(root: Path, cache: PackageCache, kernel: Package = KERNEL) -> dict[str, str]:
    """The files in the module's directory."""
    patched_module.install(root, RELEASE, kernel, cache, lambda _: None)
    return {path.name: path.read_text() for path in (root / rootfs.MODULES / RELEASE / "kernel/fs/9p").iterdir()}


def test_it_takes_the_place_of_debians_and_is_compiled_once(
    root: Path, cache: PackageCache, compiled: list[str]
) -> None:
    assert installed(root, cache) == {"9p.ko": "1"}
    assert installed(root, cache) == {"9p.ko": "1"}
    assert compiled == [RELEASE]


def test_another_kernel_has_another(root: Path, cache: PackageCache, compiled: list[str]) -> None:
    installed(root, cache)
    other = Package(KERNEL.name, "6.12.119-1", "k2.deb", 1, "22" * 32)
    assert installed(root, cache, other) == {"9p.ko": "2"}


@pytest.mark.parametrize("damaged", ["9p.ko", "sha256"])
def test_one_that_was_tampered_with_is_made_anew(
    root: Path, cache: PackageCache, compiled: list[str], damaged: str
) -> None:
    installed(root, cache)
    (entry,) = (cache.directory / "modules").iterdir()
    (entry / damaged).write_bytes(b"\xff")
    assert installed(root, cache) == {"9p.ko": "2"}


def test_a_few_are_kept(root: Path, cache: PackageCache, compiled: list[str]) -> None:
    for number in range(6):
        installed(root, cache, Package(KERNEL.name, "6.12.118-1", "k.deb", 1, f"{number:064}"))
    assert len(list((cache.directory / "modules").iterdir())) == 4
    assert installed(root, cache, Package(KERNEL.name, "6.12.118-1", "k.deb", 1, f"{5:064}")) == {"9p.ko": "6"}


def test_sources_that_the_archive_no_longer_has(
    root: Path, cache: PackageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: PackageCache, *names: str, **_: object) -> list[Package]:
        raise Internal("Version '6.12.118-1' for 'linux-source-6.12' was not found")

    monkeypatch.setattr(PackageCache, "closure", lambda *_, **__: [])
    monkeypatch.setattr(PackageCache, "named", refused)
    with pytest.raises(FailedPrecondition, match="cannot find what the 9p module") as caught:
        installed(root, cache)
    assert caught.value.hint == "run: kata image build --update"


def test_only_the_modules_sources_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack_part(deb: Path, target: Path, *parts: str) -> None:
        (target / "usr/src").mkdir(parents=True)
        with tarfile.open(target / "usr/src/linux-source-6.12.tar.xz", "w:xz") as sources:
            for name in ("drivers/x.c", "fs/9p/acl.c", "fs/9p/Makefile", "fs/Makefile"):
                member = tarfile.TarInfo(f"linux-source-6.12/{name}")
                member.size = len(name)
                sources.addfile(member, io.BytesIO(name.encode()))

    monkeypatch.setattr(rootfs, "unpack_part", unpack_part)
    patched_module._unpack_sources(Path("s.deb"), tmp_path, tmp_path / "patched")
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {str(path.relative_to(tmp_path)): path.read_text() for path in found} == {
        "patched/fs/9p/acl.c": "fs/9p/acl.c",
        "patched/fs/9p/Makefile": "fs/9p/Makefile",
    }


def test_the_patch_changes_this_module_only() -> None:
    changed = re.findall(r"^\+\+\+ b/(\S+)", patched_module.patch().decode(), re.MULTILINE)
    assert changed
    assert all(re.fullmatch(r"fs/9p/[^/]+", name) for name in changed)


def test_another_patch_makes_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    before = inputs.builder_digest()
    monkeypatch.setattr(patched_module, "patch", lambda: b"another")
    assert inputs.builder_digest() != before
