"""Kata's layout of an image, as the tools of this host read it."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

from kata.osbuilder import partitions

_MIB = 1 << 20
CONTENT = 5 * _MIB + 4096


def test_an_image_ends_where_memory_can_be_plugged_in() -> None:
    assert partitions.size(CONTENT) == 128 * _MIB
    assert partitions.size(125 * _MIB) == 128 * _MIB
    assert partitions.size(125 * _MIB + 1) == 256 * _MIB


def test_the_partition_is_found_in_the_file_and_in_what_is_mapped_of_it(tmp_path: Path) -> None:
    path = tmp_path / "image"
    for offset, start in ((0, 3 * _MIB), (2 * _MIB, _MIB)):
        path.write_bytes(partitions.head(CONTENT, b"kata")[offset:])
        os.truncate(path, partitions.size(CONTENT) - offset)
        partx = ["partx", "--show", "--bytes", "--noheadings", "--output", "START,SIZE,TYPE,UUID", str(path)]
        said = subprocess.run(partx, capture_output=True, text=True, check=True).stdout
        assert said.split() == [str(start // 512), str(CONTENT), "0x83", "6174616b-01"]


def test_the_header_says_that_the_memory_begins_after_it() -> None:
    header = partitions.head(CONTENT, bytes(4))[4096:8192]
    assert header[:16] == b"NVDIMM_PFN_INFO\0"
    assert struct.unpack_from("<IHHQQIIII", header, 48) == (0, 0, 2, 2 * _MIB, 0, 1, 0, 0, 2 * _MIB)
    # Of the words that are not zero, each counts in the second sum as often as words follow it, itself included.
    words = struct.unpack("<1022I", header[:4088])
    low, high = sum(words), sum(word * (1024 - index) for index, word in enumerate(words))
    assert struct.unpack("<Q", header[4088:]) == ((high << 32 | low & 0xFFFFFFFF) & 0xFFFFFFFFFFFFFFFF,)
