"""The parsers, on files as the kernel writes them; the real thing is tested in a guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from kata.linux import cgroup


def test_values(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("4096\n")
    assert cgroup.read_value(str(tmp_path), "memory.max") == cgroup.UNLIMITED
    assert cgroup.read_value(str(tmp_path), "memory.current") == 4096
    assert cgroup.read_value(str(tmp_path), "memory.peak") == 0


def test_keyed_files(tmp_path: Path) -> None:
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    (tmp_path / "io.stat").write_text("254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:0 \n")
    directory = str(tmp_path)
    assert cgroup.read_flat(directory, "cgroup.events") == {"populated": 1, "frozen": 1}
    assert cgroup.is_frozen(directory)
    assert cgroup.read_nested(directory, "io.stat")["254:0"]["wbytes"] == 20
    assert not cgroup.read_flat(directory, "none")
    assert not cgroup.read_nested(directory, "none")


def test_writing_to_what_is_not_there_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cgroup.kill(str(tmp_path))
