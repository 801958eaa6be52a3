from __future__ import annotations

import os
from pathlib import Path

import pytest

from kata.cli.image_from import remove_leftovers, root_file_system
from kata.errors import InvalidArgument, NotFound
from kata.linux import lock
from kata.runtime.images.model import ImageConfig
from tests.support.images import write_oci_archive


def test_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    with root_file_system(tmp_path) as found:
        assert found == tmp_path
    with root_file_system(None) as found:
        assert found is None


def test_an_archive_is_unpacked_for_as_long_as_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/os-release").write_text("ID=x\n")
    archive = write_oci_archive(tmp_path / "root", ImageConfig(cmd=("sh",)), tmp_path / "image.tar", "x:1")
    with root_file_system(archive) as found:
        assert found is not None
        assert (found / "etc/os-release").read_text() == "ID=x\n"
    assert not found.exists()


def test_what_is_no_image_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"), root_file_system(tmp_path / "x"):
        pass
    (tmp_path / "x").write_text("x")
    with pytest.raises(InvalidArgument), root_file_system(tmp_path / "x"):
        pass


def test_what_killed_builds_have_unpacked_goes_and_what_others_use_stays(tmp_path: Path) -> None:
    old, used, young, other = (tmp_path / name for name in ("kata-image-a", "kata-image-b", "kata-image-c", "x"))
    for directory in (old, used, young, other):
        (directory / "root").mkdir(parents=True)
    held = lock.acquire(used / "lock")
    assert held is not None
    try:
        for directory in (old, used, other):
            os.utime(directory, (1, 1))
        remove_leftovers(tmp_path)
    finally:
        os.close(held)
    assert sorted(tmp_path.iterdir()) == [used, young, other]
