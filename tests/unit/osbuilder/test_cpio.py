"""The archive is read back by a parser written from the format's description, not by the code under test."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.errors import NotFound
from kata.osbuilder import cpio

FIELDS = (
    *("ino", "mode", "uid", "gid", "nlink", "mtime", "filesize"),
    *("devmajor", "devminor", "rdevmajor", "rdevminor", "namesize", "check"),
)


def read(archive: bytes) -> list[tuple[str, dict[str, int], bytes]]:
    records: list[tuple[str, dict[str, int], bytes]] = []
    position = 0
    while True:
        assert archive[position : position + 6] == b"070701"
        values = [int(archive[position + 6 + 8 * i : position + 14 + 8 * i], 16) for i in range(13)]
        fields = dict(zip(FIELDS, values, strict=True))
        name_end = position + 110 + fields["namesize"]
        assert archive[name_end - 1] == 0
        name = archive[position + 110 : name_end - 1].decode()
        start = (name_end + 3) & ~3
        data = archive[start : start + fields["filesize"]]
        position = (start + fields["filesize"] + 3) & ~3
        if name == "TRAILER!!!":
            assert position == len(archive)
            return records
        records.append((name, fields, data))


def test_a_tree_of_all_kinds() -> None:
    entries = [
        cpio.directory("dev"),
        cpio.character_device("dev/console", 5, 1),
        cpio.file("init", b"#!/bin/sh\n", 0o755),
        cpio.symlink("sh", "busybox"),
    ]
    records = {name: (fields, data) for name, fields, data in read(cpio.archive(entries))}

    assert stat.S_ISDIR(records["dev"][0]["mode"])
    console = records["dev/console"][0]
    assert stat.S_ISCHR(console["mode"])
    assert (console["rdevmajor"], console["rdevminor"]) == (5, 1)
    assert records["init"] == (records["init"][0] | {"mode": stat.S_IFREG | 0o755}, b"#!/bin/sh\n")
    assert stat.S_ISLNK(records["sh"][0]["mode"])
    assert records["sh"][1] == b"busybox"


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=5))
def test_a_file_is_read_back(contents: list[bytes]) -> None:
    archive = cpio.archive([cpio.file(f"name{number}", data) for number, data in enumerate(contents)])
    assert [cpio.content(archive, f"name{number}") for number in range(len(contents))] == contents
    with pytest.raises(NotFound, match="no name"):
        cpio.content(archive, "name")


def test_the_first_header_byte_for_byte() -> None:
    archive = cpio.archive([cpio.file("a", b"xy")])
    assert archive.startswith(
        b"070701" + b"00000001" + b"000081A4" + b"00000000" * 2 + b"00000001" + b"00000000" + b"00000002"
        b"00000000" + b"00000000" * 3 + b"00000002" + b"00000000" + b"a\0" + b"xy\0\0"
    )


def test_the_same_entries_give_the_same_bytes_and_inodes_are_unique() -> None:
    entries = [cpio.file(str(i), b"x" * i) for i in range(20)]
    assert cpio.archive(entries) == cpio.archive(list(entries))
    inodes = [fields["ino"] for _, fields, _ in read(cpio.archive(entries))]
    assert len(set(inodes)) == len(inodes)
    assert all(fields["mtime"] == 0 for _, fields, _ in read(cpio.archive(entries)))


@given(st.dictionaries(st.from_regex(r"[a-z]{1,9}", fullmatch=True), st.binary(max_size=40), max_size=8))
def test_any_content_is_read_back(files: dict[str, bytes]) -> None:
    archive = cpio.archive(cpio.file(name, data) for name, data in files.items())
    assert {name: data for name, _, data in read(archive)} == files
