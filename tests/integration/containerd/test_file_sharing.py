"""One directory in two sandboxes, and on the host beside a container: what is one for both, and what is not.

Under runc all have one kernel, so all of it works. What differs is in `DIFFERENT`, and in docs/limitations.md.
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
#: What two kernels do not share, by the way that files come.
DIFFERENT: dict[str, dict[str, dict[str, str]]] = {
    "virtio-9p": {place: {} for place in PLACES},
    "virtio-fs": {place: {} for place in PLACES},
    RUNC: {place: {} for place in PLACES},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", DIFFERENT)
def test_two_programs(files: Files, way: str, place: str) -> None:
    found = PLACES[place](files)
    assert set(found) == set(filecheck.PAIRS)
    assert missed(found) == DIFFERENT[way][place], json.dumps(missed(found), indent=1)


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
