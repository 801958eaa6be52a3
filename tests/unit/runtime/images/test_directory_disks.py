"""Directories as disks: one that has changed is another one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kata.errors import FailedPrecondition
from kata.runtime.images.directory_disks import directory_disk
from kata.runtime.images.layer_cache import LayerCache

from .test_unpack import root_only

pytestmark = [
    root_only,
    pytest.mark.skipif(shutil.which("fsck.erofs") is None, reason="needs erofs-utils"),
]


@pytest.fixture
def cache(tmp_path: Path) -> LayerCache:
    return LayerCache(tmp_path / "layers", 1 << 30)


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    layer = tmp_path / "fs"
    (layer / "etc/d").mkdir(parents=True)
    (layer / "etc/file").write_text("text")
    os.mknod(layer / "etc/gone", 0o20600, os.makedev(0, 0))
    os.setxattr(layer / "etc/d", "trusted.overlay.opaque", b"y")
    return layer


def test_it_is_made_once_and_the_directory_stays(cache: LayerCache, layer: Path) -> None:
    disk = directory_disk(str(layer), cache)
    made = disk.disk.stat()
    assert directory_disk(str(layer), cache).disk.stat().st_ino == made.st_ino
    assert (layer / "etc/file").read_text() == "text"
    assert len(cache.entries()) == 1


def test_marks_of_the_overlay_are_kept(cache: LayerCache, layer: Path, tmp_path: Path) -> None:
    disk = directory_disk(str(layer), cache).disk
    shown = subprocess.run(
        ["dump.erofs", "--path=/etc/gone", str(disk)], check=True, capture_output=True, text=True, timeout=60
    )
    assert "char dev" in shown.stdout
    assert b"overlay.opaque" in disk.read_bytes()


def touch(layer: Path) -> None:
    os.utime(layer / "etc/file", ns=(1, 1))


def same_length(layer: Path) -> None:
    """Other content, with size and time as before."""
    info = (layer / "etc/file").stat()
    (layer / "etc/file").write_text("TEXT")
    os.utime(layer / "etc/file", ns=(info.st_atime_ns, info.st_mtime_ns))


def rename(layer: Path) -> None:
    (layer / "etc/file").rename(layer / "etc/other")


def attribute(layer: Path) -> None:
    os.setxattr(layer / "etc/file", "user.x", b"y")


@pytest.mark.parametrize("change", [touch, same_length, rename, attribute])
def test_a_change_makes_it_another(cache: LayerCache, layer: Path, change: Callable[[Path], None]) -> None:
    before = directory_disk(str(layer), cache)
    change(layer)
    assert directory_disk(str(layer), cache).directory != before.directory


def test_a_directory_that_is_not_there(cache: LayerCache, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"cannot read layer .*/none: No such file"):
        directory_disk(f"{tmp_path}/none", cache)
