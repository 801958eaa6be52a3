"""The mount table: lines as the kernel writes them, and this process's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kata.linux import mount, mountinfo
from kata.linux.mountinfo import Mount


def test_fields_of_a_line() -> None:
    line = "36 35 98:0 /mnt1 /mnt2 rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue\n"
    one = Mount(line)
    assert (one.id, one.root, one.point, one.shared, one.slave) == (36, "/mnt1", "/mnt2", True, True)
    assert (one.fstype, one.options) == ("ext3", {"rw": "", "errors": "continue"})
    assert (one.device, one.terms) == ("98:0", "rw,noatime shared:1 master:2")


def test_the_mount_of_an_open_file() -> None:
    with open("/proc/self/status", encoding="ascii") as file:
        number = mountinfo.id_of(file.fileno())
    assert {mount.id: mount.point for mount in mountinfo.read()}[number] == "/proc"


@pytest.mark.parametrize("tags", ["", " master:1", " propagate_from:1 unbindable"])
def test_a_mount_is_shared_only_with_its_tag(tags: str) -> None:
    # The separator within a field would be escaped; "shared:" in a path is none.
    assert not Mount(f"1 0 0:1 / /shared:1 rw{tags} - tmpfs shared:2 rw\n").shared


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("/a\\040b", "/a b"),
        ("/tab\\011line\\012", "/tab\tline\n"),
        # A backslash before digits is no escape of its own.
        ("/back\\134040", "/back\\040"),
        ("/hash\\043\\040-\\040", "/hash# - "),
    ],
)
def test_escapes(written: str, path: str) -> None:
    one = Mount(f"1 0 0:1 {written} {written} rw - tmpfs none rw\n")
    assert (one.root, one.point) == (path, path)


def test_a_source_may_be_empty() -> None:
    assert Mount("1 0 0:1 / /x rw - tmpfs  rw,size=4k\n").options == {"rw": "", "size": "4k"}


def test_a_process_that_is_gone() -> None:
    with pytest.raises(FileNotFoundError):
        mountinfo.read("/proc/0/mountinfo")


@pytest.mark.root
def test_names_that_are_hard_to_write(tmp_path: Path) -> None:
    directory = tmp_path / os.fsdecode(b"a b\\040\n\t#\xff")
    inner = directory / "inner"
    directory.mkdir()
    mount.mount("none", str(directory), "tmpfs", 0, "size=64k")
    try:
        inner.mkdir()
        mount.mount("none", str(inner), "tmpfs")
        mount.mount("none", str(inner), "ramfs")
        assert mountinfo.points_below(str(tmp_path)) == [str(inner), str(inner), str(directory)]
        assert mountinfo.points_below(str(inner)) == [str(inner), str(inner)]
        assert mountinfo.points_below(str(tmp_path / "a")) == []
        outer, topmost = mountinfo.mounted_at(str(directory)), mountinfo.mounted_at(str(inner))
        assert outer
        assert topmost
        assert (outer.fstype, outer.options["size"], topmost.fstype) == ("tmpfs", "64k", "ramfs")
        assert mountinfo.mounted_at(str(tmp_path)) is None
    finally:
        for point in mountinfo.points_below(str(tmp_path)):
            mount.umount(point)
