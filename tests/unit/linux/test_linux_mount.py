from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.linux import mount as m
from kata.linux.mountinfo import points_below

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], (0, 0, "")),
        (["ro", "nosuid", "size=1m", "mode=700"], (m.MS_RDONLY | m.MS_NOSUID, 0, "size=1m,mode=700")),
        (["ro", "rw"], (0, 0, "")),
        (["rbind", "rslave"], (m.MS_BIND | m.MS_REC, m.MS_SLAVE | m.MS_REC, "")),
        (["shared", "private"], (0, m.MS_PRIVATE, "")),
        (["", "defaults", "trans=virtio"], (0, 0, "trans=virtio")),
    ],
)
def test_options_are_sorted_by_who_takes_them(options: list[str], expected: tuple[int, int, str]) -> None:
    assert m.parse_options(options) == expected


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    point = tmp_path / "with space"
    point.mkdir()
    m.mount("tmpfs", str(point), "tmpfs", m.MS_NOSUID, "size=1m")
    yield point
    m.umount(str(point))


@needs_root
def test_mount_and_bind(tmpfs: Path, tmp_path: Path) -> None:
    (tmpfs / "word").write_text("x")
    target = tmp_path / "bound"
    target.mkdir()
    m.bind(str(tmpfs), str(target))
    try:
        m.restrict(str(target), m.MS_RDONLY | m.MS_BIND)
        assert (target / "word").read_text() == "x"
        with pytest.raises(OSError, match="Read-only"):
            (target / "other").write_text("y")
        assert points_below(str(tmp_path)) == [str(target), str(tmpfs)]
        assert points_below(str(tmpfs)) == [str(tmpfs)]
    finally:
        m.umount(str(target))
    assert points_below(str(target)) == []


@needs_root
def test_read_only_and_back(tmpfs: Path) -> None:
    m.make_read_only(str(tmpfs), recursive=False)
    with pytest.raises(OSError, match="Read-only"):
        (tmpfs / "word").write_text("x")
    m.make_writable(str(tmpfs))
    with (tmpfs / "word").open("w"), pytest.raises(OSError, match=r"make read-only.*busy"):
        m.make_read_only(str(tmpfs), recursive=False)


@needs_root
def test_errors_name_call_and_target(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mount tmpfs") as caught:
        m.mount("tmpfs", str(tmp_path / "none"), "tmpfs")
    assert caught.value.filename == str(tmp_path / "none")
    with pytest.raises(OSError, match="umount"):
        m.umount(str(tmp_path))


@needs_root
def test_umount_follows_no_link(tmpfs: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmpfs)
    with pytest.raises(OSError, match="umount"):
        m.umount(str(tmp_path / "link"))
    assert points_below(str(tmpfs)) == [str(tmpfs)]


@needs_root
def test_a_tree_that_is_cloned_and_attached(tmpfs: Path, tmp_path: Path) -> None:
    (tmpfs / "word").write_text("x")
    target = tmp_path / "target"
    target.mkdir()
    tree = m.clone_tree(str(tmpfs), True)
    try:
        assert os.path.samestat(os.fstat(tree), tmpfs.stat())
        assert points_below(str(target)) == []
        m.attach(tree, str(target))
        assert (target / "word").read_text() == "x"
    finally:
        os.close(tree)
        m.umount(str(target))
    with pytest.raises(FileNotFoundError):
        m.clone_tree(str(tmp_path / "none"), False)
