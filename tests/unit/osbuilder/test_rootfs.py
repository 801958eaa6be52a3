"""What of the root can be made without root; the whole is built and booted in tests/vm/test_image_boot.py."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from kata.osbuilder import rootfs

UUID = "00000000-0000-0000-0000-000000000001"

needs_erofs = pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="mkfs.erofs is not installed")


def tree(root: Path, names: list[str], timestamp: int) -> Path:
    root.mkdir(parents=True)
    for name in names:
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name * 100)
        os.utime(path, (timestamp, timestamp))
    (root / "link").symlink_to(names[0])
    return root


@pytest.fixture
def twins(tmp_path: Path) -> list[Path]:
    """The same content, made in another order at another time."""
    names = [f"{directory}/{i}" for directory in "abc" for i in range(30)]
    return [tree(tmp_path / "x/root", sorted(names), 1), tree(tmp_path / "y/root", sorted(names, reverse=True), 99999)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def link_to_same(twin: Path) -> None:
    (twin / "link").unlink()
    (twin / "link").symlink_to("a/0")


def test_the_same_content_gives_the_same_archive(twins: list[Path]) -> None:
    digests = set()
    for twin in twins:
        link_to_same(twin)
        rootfs.pack(twin, twin.parent / "root.tar")
        digests.add(digest(twin.parent / "root.tar"))
    assert len(digests) == 1


def test_an_archive_is_unpacked_as_it_was(twins: list[Path], tmp_path: Path) -> None:
    (twins[0] / "a/0").chmod(0o755)
    rootfs.pack(twins[0], tmp_path / "root.tar")
    rootfs.unpack_archive(tmp_path / "root.tar", tmp_path / "copy")
    assert (tmp_path / "copy/b/3").read_text() == "b/3" * 100
    assert (tmp_path / "copy/a/0").stat().st_mode & 0o777 == 0o755
    assert os.readlink(tmp_path / "copy/link") == os.readlink(twins[0] / "link")
