"""Very many files, very large ones, and no room for them: over each way that files come, beside runc."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fileextremes import names_of
from tests.support.fileways import RUNC, Files, missed

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this"), pytest.mark.timeout(400)]

MANY = 100_000
#: What the programs are told of an error instead, by the way that files come; see docs/limitations.md.
FULL = {
    "virtio-9p": {"written until it is full": "fsync: {}", "written by a mapping until it is full": "{}"},
    "virtio-fs": {"written by a mapping until it is full": "{}"},
}
#: What SQLite says of it, which depends on the call that it was.
SQLITE = {
    f"{said}, integrity ok" for said in ("database or disk is full", "disk I/O error", "unable to open database file")
}
#: Room for 32 MiB: a full disk, and a quota. mkfs's options, and what limits what is mounted.
ROOM = {
    "full": (["mkfs.ext4", "-q", "-F"], 32 << 20, []),
    "quota": (["mkfs.btrfs", "-q", "-f"], 256 << 20, [["quota", "enable"], ["qgroup", "limit", "32m"]]),
}
FEW_OR_MANY = pytest.mark.parametrize("count", [600, pytest.param(MANY, marks=pytest.mark.long)])


@FEW_OR_MANY
@pytest.mark.timeout(1900)
@pytest.mark.parametrize(
    ("way", "directory"),
    [
        pytest.param(RUNC, "/srv/files", marks=pytest.mark.long),
        pytest.param("virtio-9p", "/a/files", marks=pytest.mark.long),
        ("virtio-fs", "/a/files"),
        ("layers, disk", "/srv/files"),
    ],
)
def test_many_and_large(files: Files, directory: str, count: int) -> None:
    if directory.startswith("/a"):  # creating them from a guest takes minutes: it has every tenth left
        there = files.volume / "files/check-0"
        there.mkdir(parents=True)
        for number, name in enumerate(names_of(count)):
            if number % 10:
                (there / name).touch(0o600)
    assert missed(files.run("fileextremes", (directory, str(count)), timeout=60 + count / 60)) == {}


@pytest.fixture(params=["full", pytest.param("quota", marks=pytest.mark.long)])
def limited(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The volume of the test has room for 32 MiB."""
    make, size, limits = ROOM[request.param]
    image, volume = tmp_path / "image", tmp_path / "volume"
    with image.open("wb") as file:
        file.truncate(size)
    volume.mkdir()
    subprocess.run([*make, image], check=True, capture_output=True, timeout=30)
    subprocess.run(["mount", "-o", "loop", image, volume], check=True, timeout=30)
    try:
        for limit in limits:
            subprocess.run(["btrfs", *limit, volume], check=True, capture_output=True, timeout=30)
        yield request.param
    finally:
        subprocess.run(["umount", volume], check=True, timeout=30)


def told(error: str) -> dict[str, str]:
    """What programs are told, by a host's file system and by the guest's own."""
    return {
        "written until it is full": f"write: {error}",
        "the size is what was written": "True",
        "what was there before": "True",
        "written by a mapping until it is full": "SIGBUS",
        "written when there is room again": "True",
    }


@pytest.mark.parametrize("way", [RUNC, "virtio-9p", "virtio-fs"])
def test_no_room(files: Files, way: str, limited: str) -> None:
    """It is an error in the container, what was there stays, and all works again when there is room."""
    error = "ENOSPC" if limited == "full" else "EDQUOT"
    found = files.run("filefull", ("/a/files",))
    assert found.pop("SQLite") in SQLITE
    assert found == told(error) | {what: said.format(error) for what, said in FULL.get(way, {}).items()}


@pytest.mark.parametrize("way", ["layers, small disk"])
def test_no_room_in_the_root(files: Files) -> None:
    found = files.run("filefull", ("/srv/files",))
    assert found.pop("SQLite") in SQLITE
    assert found == told("ENOSPC")
