from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kata.agent.files import copy
from kata.errors import FailedPrecondition, InvalidArgument
from kata.protocols import agent_pb2 as pb

ME = {"uid": os.getuid(), "gid": os.getgid()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "shared"


def request(path: object, data: bytes = b"", **fields: int) -> pb.CopyFileRequest:
    defaults = {"file_size": len(data), "file_mode": stat.S_IFREG | 0o600, "dir_mode": 0o755, **ME}
    return pb.CopyFileRequest(path=str(path), data=data, **{**defaults, **fields})


def test_a_file_has_its_name_when_it_is_whole(root: Path) -> None:
    path = root / "a/b/file"
    copy(request(path, b"abc", file_size=6, file_mode=stat.S_IFREG | 0o640), str(root))
    assert not path.exists()
    copy(request(path, b"def", file_size=6, offset=3, file_mode=stat.S_IFREG | 0o640), str(root))
    assert path.read_bytes() == b"abcdef"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(path.parent) == ["file"]
    copy(request(path, b"", file_mode=0), str(root))
    assert path.read_bytes() == b""


def test_directories_and_links(root: Path) -> None:
    copy(request(root / "d", file_mode=stat.S_IFDIR | 0o711), str(root))
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o711
    for target in (b"..2026", b"/anywhere"):
        copy(request(root / "d/..data", target, file_mode=stat.S_IFLNK | 0o777), str(root))
        assert os.readlink(root / "d/..data") == target.decode()


@pytest.mark.parametrize(
    "path", ["/etc/x", "ROOT", "ROOT/../x", "relative", "", "ROOT/" + "n" * 250, "ROOTx/y", "ROOT/a\0b"]
)
def test_paths_outside_are_refused(root: Path, path: str) -> None:
    with pytest.raises(InvalidArgument):
        copy(request(path.replace("ROOT", str(root)), b"x"), str(root))
    assert not root.exists()


@pytest.mark.parametrize("fields", [{"offset": -1}, {"offset": 10}, {"file_size": -1}, {"file_size": 0}])
def test_chunks_outside_of_their_file_are_refused(root: Path, fields: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument, match="lies outside"):
        copy(request(root / "f", b"x", **fields), str(root))
    assert os.listdir(root) == []


def test_other_kinds_are_refused(root: Path) -> None:
    with pytest.raises(InvalidArgument, match="neither"):
        copy(request(root / "f", file_mode=stat.S_IFCHR | 0o600), str(root))


def test_links_on_the_way_are_not_followed(root: Path, tmp_path: Path) -> None:
    root.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "link").symlink_to(outside)
    (root / "same").symlink_to(outside / "file")
    with pytest.raises(FailedPrecondition):
        copy(request(root / "link/file", b"x"), str(root))
    with pytest.raises(FailedPrecondition):
        copy(request(root / "link", file_mode=stat.S_IFDIR | 0o755), str(root))
    copy(request(root / "same", b"x"), str(root))
    assert (root / "same").read_bytes() == b"x"
    assert not (root / "same").is_symlink()
    # A link in the place of the unfinished file is replaced, not written through.
    (root / ".kata-copy-new").symlink_to(outside / "file")
    copy(request(root / "new", b"x"), str(root))
    assert list(outside.iterdir()) == []
