from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.linux.openat2 import RESOLVE_BENEATH, open_directory, openat2, relative_parts


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "root/a/b").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    fd = os.open(tmp_path / "root", os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_what_is_inside_opens(root: int) -> None:
    fd = open_directory(root, "/a//b/.")
    assert os.readlink(f"/proc/self/fd/{fd}").endswith("/root/a/b")
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_missing_directories_are_made_on_demand_only(root: int, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_directory(root, "new/one")
    os.close(open_directory(root, "new/one", create_mode=0o700))
    assert (tmp_path / "root/new/one").is_dir()


@pytest.mark.parametrize("target", ["/", "..", "../outside", "a"])
def test_no_link_is_followed(root: int, tmp_path: Path, target: str) -> None:
    (tmp_path / "root/link").symlink_to(target)
    for create in (None, 0o755):
        with pytest.raises(OSError) as caught:
            open_directory(root, "link/x", create_mode=create)
        assert caught.value.errno == errno.ELOOP
    assert not (tmp_path / "root/a/x").exists()
    assert not (tmp_path / "outside/x").exists()


@pytest.mark.parametrize("path", ["..", "a/../..", "a/\0"])
def test_parents_and_nul_are_refused(root: int, path: str) -> None:
    with pytest.raises(ValueError, match="contains"):
        open_directory(root, path)


def test_relative_parts() -> None:
    assert relative_parts("//a/./b/") == ["a", "b"]
    assert relative_parts("..data/x") == ["..data", "x"]


def test_openat2_itself_holds_the_line(root: int) -> None:
    with pytest.raises(OSError) as caught:
        openat2(root, "../outside", os.O_PATH, resolve=RESOLVE_BENEATH)
    assert caught.value.errno == errno.EXDEV


def test_no_descriptor_is_left_open_by_a_failure(root: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(FileNotFoundError):
            open_directory(root, "a/none/deeper")
    assert len(os.listdir("/proc/self/fd")) == before
