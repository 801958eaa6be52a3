"""Files that appear whole, on real file systems."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.linux import atomic_file, mount


def test_makes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_file.write(path, "first é")
    assert path.read_text(encoding="utf-8") == "first é"
    with path.open("rb") as old:
        atomic_file.write(str(path), b"second")
        assert old.read() == "first é".encode(), "who has it open keeps it"
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["file"]


def test_a_name_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    atomic_file.write("address", "unix://x")
    assert (tmp_path / "address").read_text() == "unix://x"


def test_permissions_are_less_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        atomic_file.write(tmp_path / "plain", "")
        atomic_file.write(tmp_path / "program", "", mode=0o755)
    finally:
        os.umask(mask)
    assert [path.stat().st_mode & 0o777 for path in sorted(tmp_path.iterdir())] == [0o640, 0o750]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    link = tmp_path / "link"
    link.symlink_to(target)
    atomic_file.write(link, "new")
    assert (link.is_symlink(), link.read_text(), target.read_text()) == (False, "new", "kept")


def test_what_a_killed_writer_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f".file.{os.getpid()}").write_text("half of a longer")
    atomic_file.write(tmp_path / "file", "whole")
    assert (tmp_path / "file").read_text() == "whole"


def test_readers_never_see_a_part(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_file.write(path, b"0" * 100_000)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            atomic_file.write(path, str(number % 10).encode() * 100_000)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            content = path.read_bytes()
            assert len(content) == 100_000
            assert len(set(content)) == 1
    finally:
        stop.set()
        writer.join()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    point = tmp_path / "small"
    point.mkdir()
    mount.mount("none", str(point), "tmpfs", 0, "size=64k")
    yield point
    mount.umount(str(point))


@pytest.mark.root
def test_a_full_disk_leaves_the_old_file_and_nothing_beside(small: Path) -> None:
    path = small / "file"
    atomic_file.write(path, "old")
    with pytest.raises(OSError) as caught:
        atomic_file.write(path, b"x" * (1 << 20))
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert os.listdir(small) == ["file"]


def test_a_directory_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic_file.write(tmp_path / "file", "text")
    assert os.listdir(tmp_path) == ["file"]


def test_sync_directory(tmp_path: Path) -> None:
    atomic_file.sync_directory(tmp_path)
    with pytest.raises(NotADirectoryError):
        atomic_file.sync_directory(__file__)
