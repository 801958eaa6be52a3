"""What programs expect of a container's files, by programs in it: in runc, and over each way that files can come.

One program for what a file system is; then two that have one directory by two mounts of a container, and two in two
containers of a pod.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kata.runtime.hypervisor.qemu.share import find_helper
from tests.support import filecheck
from tests.support.fileways import RUNC, Files, missed

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this"), pytest.mark.timeout(300)]

#: overlayfs, which a root file system is on, lets nobody make what means a whiteout to it.
ON_OVERLAY = {"whiteouts (device 0:0)": "Operation not permitted"}
#: What QEMU's 9p helper leaves out, and QEMU itself where there is no helper; see docs/limitations.md.
OVER_9P = {
    "times in nanoseconds": "is not so",
    "file capabilities": "Operation not permitted" if find_helper() else "Operation not supported",
}
#: What two programs miss over 9p, where each link to a file is a file of its own, and a new one for each who looks at
#: it when nobody has it open.
PAIR_OVER_9P = dict.fromkeys(
    ("whole-file locks by another link", "inotify of a directory", "inotify of a file"), "is not so"
)


def tried(files: Files, directory: str = "/srv/files", *options: str) -> dict[str, object]:
    """What the program does not find in a container's directory, and why."""
    found = files.found("filecheck", directory, *options)
    assert set(found) == set(filecheck.CHECKS)
    return missed(found)


def tried_by_two(files: Files, find: Callable[[Files, str], dict[str, object]]) -> dict[str, object]:
    """What two programs do not find, and why."""
    found = find(files, "filecheck")
    assert set(found) == set(filecheck.PAIRS)
    return missed(found)


@pytest.mark.parametrize(
    "way", [RUNC, "virtio-fs", "layers, disk", pytest.param("layers, memory", marks=pytest.mark.long)]
)
def test_one_program(files: Files) -> None:
    assert tried(files) == ON_OVERLAY


@pytest.mark.parametrize("way", ["virtio-9p"])
def test_one_program_over_9p(files: Files) -> None:
    assert tried(files) == {**ON_OVERLAY, **OVER_9P}


@pytest.fixture
def disk(tmp_path: Path) -> str:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(path)], check=True, timeout=30)
    return str(path)


@pytest.mark.parametrize("way", ["virtio-9p"])
def test_on_a_disk(files: Files, disk: str) -> None:
    assert tried(files, "/data/files", "--mount", f"type=ext4,src={disk},dst=/data,options=loop") == {}


@pytest.mark.parametrize("way", [RUNC, "virtio-fs"])
@pytest.mark.parametrize("find", [Files.two_mounts, Files.two_containers], ids=["two mounts", "two containers"])
def test_two_programs(files: Files, find: Callable[[Files, str], dict[str, object]]) -> None:
    assert tried_by_two(files, find) == {}


@pytest.mark.parametrize("way", ["virtio-9p"])
@pytest.mark.parametrize(
    "find",
    [
        pytest.param(Files.two_mounts, id="two mounts", marks=pytest.mark.long),
        pytest.param(Files.two_containers, id="two containers"),
    ],
)
def test_two_programs_over_9p(files: Files, find: Callable[[Files, str], dict[str, object]]) -> None:
    assert tried_by_two(files, find) == PAIR_OVER_9P
