from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.errors import InvalidArgument
from kata.osbuilder import contents
from kata.osbuilder.contents import Item


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a/b c").mkdir(parents=True)
    (tmp_path / "a/b c/#x=\n").write_bytes(b"hello")
    (tmp_path / "a/b c/#x=\n").chmod(0o640)
    (tmp_path / "link").symlink_to("a/b c")
    os.mkfifo(tmp_path / "fifo", 0o600)
    with socket.socket(socket.AF_UNIX) as left_out:
        left_out.bind(str(tmp_path / "socket"))
    return tmp_path


def test_a_directory_is_listed_and_read_back(root: Path) -> None:
    items = contents.collect(root)
    assert [item.path for item in items] == ["a", "a/b c", "a/b c/#x=\n", "fifo", "link"]
    assert items[2] == Item(
        "a/b c/#x=\n", "file", 0o640, 5, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    )
    assert items[4].link == "a/b c"
    text = contents.dump(items)
    assert text.isascii()
    assert len(text.splitlines()) == 6
    assert contents.parse(text) == items


@given(st.binary(min_size=1).filter(lambda raw: b"\0" not in raw and not raw.startswith((b"/", b"./"))))
def test_any_name_comes_back(raw: bytes) -> None:
    item = Item(os.fsdecode(raw), "link", 0o777, link=os.fsdecode(raw))
    assert contents.parse(contents.dump([item])) == [item]


@pytest.mark.parametrize("text", ["", "x", "#mtree\n./x\n", "#mtree\n./x type=file mode=9\n", "#mtree\n\n"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="list of files"):
        contents.parse(text)


def test_two_lists_are_compared() -> None:
    same, gone, old, new, come = (
        Item("same", "dir", 0o755),
        Item("gone", "dir", 0o755),
        Item("x", "file", 0o644, 1, "aa"),
        Item("x", "file", 0o644, 1, "bb"),
        Item("come", "fifo", 0o600),
    )
    found = contents.compare([same, gone, old], [same, new, come])
    assert found == contents.Difference((come,), (gone,), ((old, new),))
