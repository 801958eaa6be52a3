"""Which source is used through which export. What the kernel makes of it is in test_shared_tree.py."""

from __future__ import annotations

import itertools
import stat
from collections.abc import Mapping

import pytest

from kata.runtime.storage.exports import Export, Submounts, Use, Wanted, plan_uses
from kata.runtime.storage.host_paths import HostPath, Place


def place(path: str, mount: int = 1, terms: str = "rw", *submounts: str, filesystem: str = "8:1") -> Place:
    return Place(filesystem, path, mount, terms, frozenset(submounts))


def wanted(place: Place | None, inode: int = 7, *, write: bool = True, recursive: bool = True) -> Wanted:
    found = HostPath((1, inode), stat.S_IFDIR | 0o755, place)
    return Wanted(f"/source/{inode}", found, write, recursive)


def plan(
    *paths: Wanted, exports: Mapping[Export, bool] | None = None, now: Mapping[str, Place] | None = None
) -> list[str]:
    return [use.path for use in uses(*paths, exports=exports, now=now)]


def uses(
    *paths: Wanted, exports: Mapping[Export, bool] | None = None, now: Mapping[str, Place] | None = None
) -> list[Use]:
    first = len(exports or {})
    return plan_uses(paths, exports or {}, now or {}, map("@{}".format, itertools.count(first)).__next__)


def test_what_is_not_in_the_mount_table_is_nobody_elses() -> None:
    assert plan(wanted(None), wanted(None)) == ["@0", "@1"]
    assert uses(Wanted("/absent", None))[0].export == Export("/absent", "@0")


@pytest.mark.parametrize(
    ("other", "path"),
    [
        (place("/a/b", 2), "@0"),
        (place("/a/b", 2, "ro"), "@1"),
        (place("/a/b", 2, "rw shared:4"), "@1"),
        (place("/a/b", 2, filesystem="8:2"), "@1"),
    ],
)
def test_through_another_mount_it_is_the_same_on_the_same_terms(other: Place, path: str) -> None:
    assert plan(wanted(place("/a/b")), wanted(other)) == ["@0", path]


@pytest.mark.parametrize(
    ("part", "path"),
    [
        (place("/a/b"), "@0/b"),
        (place("/a/b/c"), "@0/b/c"),
        (place("/a/b", 2), "@0/b"),
        (place("/a/b", 2, "ro"), "@1"),
        (place("/a/hidden", 2), "@1"),
        (place("/a/hidden/c", 2), "@1"),
        (place("/a/hiddenly"), "@0/hiddenly"),
        (place("/a/b", 1, "rw", "mounted"), "@1"),
        (place("/ab"), "@1"),
        (place("/"), "@1"),
        (place("/a/not \udcff text"), "@1"),
    ],
)
def test_parts(part: Place, path: str) -> None:
    whole = Export("/a", "@0", (1, 1), place("/a", 1, "rw", "hidden"), Submounts.INCLUDED)
    assert plan(wanted(part), exports={whole: True}) == [path]
    assert plan(wanted(part), exports={whole: False}) == ["@1"]


def test_a_part_is_taken_from_the_innermost_that_is_writable() -> None:
    root, outer, inner = (wanted(place(path), inode) for inode, path in enumerate(("/", "/a", "/a/b")))
    assert plan(inner, outer, root) == ["@0/a/b", "@0/a", "@0"]
    exports = {
        Export("/", "@0", (1, 0), place("/")): True,
        Export("/a", "@1", (1, 1), place("/a")): False,
    }
    assert plan(wanted(place("/a/b")), exports=exports) == ["@0/a/b"]


def test_an_export_is_where_the_mount_table_has_it_now() -> None:
    whole = {Export("/a", "@0", (1, 1), place("/a")): True}
    moved = {"@0": place("/moved", 9, "ro")}
    assert plan(wanted(place("/a/b")), exports=whole, now=moved) == ["@1"]
    assert plan(wanted(place("/moved/b")), exports=whole, now=moved) == ["@0/b"]


def test_who_may_write_is_asked_of_all() -> None:
    whole = place("/a")
    asked = [wanted(place("/a/b"), 2), wanted(whole, write=False), wanted(whole)]
    assert [(use.path, use.write) for use in uses(*asked)] == [("@0/b", True), ("@0", False), ("@0", True)]


def test_mounts_beneath_differ_by_the_mount_that_they_are_seen_through() -> None:
    first, second = place("/a", 1, "rw", "x"), place("/a", 2, "rw", "y")
    assert plan(wanted(first), wanted(second), wanted(first)) == ["@0", "@1", "@0"]
    assert plan(wanted(first), wanted(first, recursive=False), wanted(first, write=False)) == ["@0", "@1", "@2"]
