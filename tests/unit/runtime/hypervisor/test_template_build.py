"""What is kept of a guest's memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kata.runtime.hypervisor.template import build

PAGE = 4096

Copy = Callable[..., tuple[Path, int]]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """Copies a file of these pieces, (offset, content), and of this size; gives the copy and what was written."""

    def run(size: int, *pieces: tuple[int, bytes]) -> tuple[Path, int]:
        source = os.memfd_create("source", os.MFD_CLOEXEC)
        try:
            os.ftruncate(source, size)
            for offset, content in pieces:
                os.pwrite(source, content, offset)
            return tmp_path / "copy", build._copy(source, tmp_path / "copy")
        finally:
            os.close(source)

    return run


def test_content_stays_where_it_is(copy: Copy) -> None:
    pieces = (3 * PAGE + 5, b"five"), (2 << 20, b"x" * (3 * PAGE)), ((5 << 20) - 1, b"end")
    path, written = copy((5 << 20) + 2, *pieces)
    data = path.read_bytes()
    assert len(data) == (5 << 20) + 2
    assert all(data[offset : offset + len(content)] == content for offset, content in pieces)
    assert data.count(0) == len(data) - sum(len(content) for _, content in pieces)
    assert written == PAGE + 3 * PAGE + PAGE + 2


def test_zeros_take_no_room(copy: Copy) -> None:
    path, written = copy(64 << 20, (0, bytes(8 << 20)), (16 << 20, b"x"))
    assert written == PAGE
    assert path.stat().st_size == 64 << 20
    assert path.stat().st_blocks * 512 == PAGE


def test_an_empty_file(copy: Copy) -> None:
    path, written = copy(1 << 20)
    assert (path.stat().st_size, written) == (1 << 20, 0)


def test_only_root_may_read_it(copy: Copy) -> None:
    path, _ = copy(PAGE, (0, b"secret"))
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_existing_file_is_not_touched(copy: Copy, tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("mine")
    with pytest.raises(FileExistsError):
        copy(PAGE)
    assert (tmp_path / "copy").read_text() == "mine"
