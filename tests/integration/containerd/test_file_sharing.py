"""One directory in two sandboxes, and on the host beside a container: what is one for both, and what is not.

Under runc all have one kernel, so all of it works. What differs is below, and in docs/limitations.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import filecheck
from tests.support.fileways import RUNC, Files, missed

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this"), pytest.mark.timeout(300)]

PLACES: dict[str, Callable[[Files], dict[str, object]]] = {
    "two sandboxes": lambda files: files.two_sandboxes("filecheck"),
    "the host looks at a guest's changes": lambda files: files.beside_the_host("filecheck", first=True),
    "a guest looks at the host's changes": lambda files: files.beside_the_host("filecheck", first=False),
}
#: What two kernels never share.
NEVER = {
    *("Unix socket", "FIFO", "a shared mapping"),
    *("whole-file locks (flock)", "whole-file locks that wait", "whole-file locks by another link"),
    *("record locks (fcntl)", "record locks that wait"),
}
#: What is seen later, or not as long as a file is open, by the way that files come.
LATER = {
    "virtio-9p": {
        *("what one writes the other reads", "one inode, its links and modes", "a shared mapping and read"),
        *("O_APPEND", "a file that grows, read on", "appended in turns"),
        *("the directory that one is in, renamed by the other", "inotify of a directory", "inotify of a file"),
        "a file that is open, in a directory that the other renames and replaces",
    },
    "virtio-fs": {
        *("what one writes the other reads", "one inode, its links and modes", "a shared mapping and read"),
        *("truncated by the other", "times that the other sets, and its change"),
        *("inotify of a directory", "inotify of a file"),
        "a file that is open, in a directory that the other renames and replaces",
    },
}


def tried(files: Files, place: str) -> dict[str, object]:
    found = PLACES[place](files)
    assert set(found) == set(filecheck.PAIRS) - set(filecheck.ONE_KERNEL)
    return missed(found)


@pytest.mark.parametrize(
    "place", ["two sandboxes", *(pytest.param(place, marks=pytest.mark.long) for place in list(PLACES)[1:])]
)
@pytest.mark.parametrize("way", [RUNC])
def test_one_kernel(files: Files, place: str) -> None:
    assert tried(files, place) == {}


@pytest.mark.long
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", ["virtio-9p", "virtio-fs"])
def test_two_kernels(files: Files, way: str, place: str) -> None:
    found = tried(files, place)
    assert set(found) >= NEVER, json.dumps(found, indent=1)
    assert set(found) <= NEVER | LATER[way], json.dumps(found, indent=1)


@pytest.mark.parametrize("way", ["virtio-9p", "virtio-fs"])
def test_the_host_renames_a_volume_that_two_sandboxes_have(files: Files, tmp_path: Path) -> None:
    """Both keep it, and have what the other one writes: it is not the name that they have."""
    with files.serving("filecheck") as one, files.serving("filecheck") as two:
        for there in (one, two):
            there.call(filecheck.enter, ".")
        one.call(filecheck.put, "before", "one")
        assert two.call(filecheck.get, "before") == "one"
        moved = files.volume.rename(tmp_path / "moved")
        (tmp_path / "volume").mkdir()
        (tmp_path / "volume/before").write_text("of another directory")
        assert [there.call(filecheck.get, "before") for there in (one, two)] == ["one", "one"]
        one.call(filecheck.put, "after", "still one")
        two.call(os.rename, "after", "renamed")
        assert one.call(filecheck.get, "renamed") == (moved / "renamed").read_text() == "still one"
