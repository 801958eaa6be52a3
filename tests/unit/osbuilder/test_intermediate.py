"""What is kept in the cache between builds, and what is not used again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kata.osbuilder import intermediate, store
from kata.osbuilder.packages import Package, PackageCache

KERNEL = Package("linux-image-6.12.118+deb13-amd64", "6.12.118-1", "k.deb", 1, "00" * 32)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def base_of(cache: Path, name: str, debs: list[str]) -> Path:
    base = cache / "base" / name
    (base / "host").mkdir(parents=True)
    for file in ("root.tar", "host/virtiofsd"):
        (base / file).write_text(f"{name} {file}")
    digests = {file: store.file_digest(base / file) for file in ("root.tar", "host/virtiofsd")}
    (base / "base.json").write_text(json.dumps({"date": 1, "debs": debs, "files": digests}))
    return base


def damage(base: Path) -> None:
    (base / "host/virtiofsd").write_text("X")


def remove(base: Path) -> None:
    (base / "root.tar").unlink()


def cut(base: Path) -> None:
    (base / "base.json").write_text('{"date"')


@pytest.mark.parametrize("change", [damage, remove, cut, shutil.rmtree])
def test_an_intermediate_that_was_tampered_with_is_not_used(cache: Path, change: Callable[[Path], None]) -> None:
    base = base_of(cache, "a", [])
    assert intermediate._is_whole(base)
    change(base)
    assert not intermediate._is_whole(base)


def test_the_packages_of_the_last_recipes_stay(cache: Path) -> None:
    packages = PackageCache(cache)
    packages.path(KERNEL).parent.mkdir(parents=True)
    for age in range(5):
        base = base_of(cache, f"base{age}", ["k.deb", f"{age}.deb"])
        os.utime(base, (1000 - age, 1000 - age))
        (packages.path(KERNEL).parent / f"{age}.deb").touch()
    packages.path(KERNEL).touch()
    cut(cache / "base/base3")
    intermediate._forget_unused(cache / "base", packages)
    assert sorted(path.name for path in (cache / "base").iterdir()) == [f"base{age}" for age in range(4)]
    left = sorted(path.name for path in packages.path(KERNEL).parent.iterdir())
    assert left == ["0.deb", "1.deb", "2.deb", "k.deb"]
