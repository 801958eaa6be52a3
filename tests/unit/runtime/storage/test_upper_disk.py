"""The disk that a root is written to: sparse, nameless, and an error with a hint where there is no room."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from kata.errors import FailedPrecondition, ResourceExhausted
from kata.runtime.config.settings import RuntimeConfig
from kata.runtime.storage.upper_disk import make_upper_disk, upper_of

pytestmark = pytest.mark.skipif(shutil.which("mke2fs", path="/usr/sbin") is None, reason="needs mke2fs")

SIZE = 20 << 30


def test_it_is_sparse_and_has_no_name(tmp_path: Path) -> None:
    fd = make_upper_disk(tmp_path / "upper", SIZE)
    try:
        info = os.fstat(fd)
        assert info.st_size == SIZE
        assert info.st_blocks * 512 < 1 << 20
        assert info.st_nlink == 0
        assert info.st_mode & 0o077 == 0
        assert os.listdir(tmp_path / "upper") == []
        assert os.pread(fd, 2, 1024 + 56) == b"\x53\xef", "the magic number of ext4"
        subprocess.run(
            ["/usr/sbin/e2fsck", "-fn", f"/proc/self/fd/{fd}"],
            pass_fds=(fd,),
            check=True,
            capture_output=True,
            timeout=60,
        )
    finally:
        os.close(fd)


def test_the_configuration_says_where(tmp_path: Path) -> None:
    config = replace(RuntimeConfig(), rootfs_upper_path=tmp_path, rootfs_upper_size=64)
    with ExitStack() as held:
        path = upper_of(config, held)
        assert os.stat(path).st_size == 64 << 20
    assert not os.path.exists(path)
    assert upper_of(replace(config, rootfs_upper="memory"), ExitStack()) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a file system")
def test_a_full_disk(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path)], check=True, timeout=20)
    try:
        with pytest.raises(ResourceExhausted, match="no space left") as caught:
            make_upper_disk(tmp_path, SIZE)
        assert "rootfs_upper_path" in str(caught.value.hint)
        assert os.statvfs(tmp_path).f_bfree == os.statvfs(tmp_path).f_blocks
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True, timeout=20)


def test_where_no_file_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match="cannot make a disk for a root file system in"):
        make_upper_disk(tmp_path / "file/upper", SIZE)
