"""The system calls on files, case by case: by each way that files can come to a container, and in each place in it.

What is right in a container of runc is right here; what differs is in `DIFFERENT`, and in docs/limitations.md.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kata.runtime.hypervisor.qemu.share import find_helper
from tests.support.fileways import RUNC, Files

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this"), pytest.mark.timeout(400)]

#: What happens instead, by the way that files come; ANY is what nobody can tell.
ANY = "any"
#: QEMU's 9p helper keeps set-ID bits; a QEMU that serves 9p by itself has no capability for device nodes.
_OF_9P_SERVER = (
    {"write: set-ID bits, by root": "0777", "utimensat: only one of both is seen": ANY}
    if find_helper()
    else {
        f"mknod: {kind} device{what}": said
        for kind in ("character", "block")
        for what, said in ((", by root", "EPERM"), (": number", "ENOENT"), (": mode", "ENOENT"))
    }
)
DIFFERENT: dict[str, dict[str, str]] = {
    "virtio-9p": {
        **_OF_9P_SERVER,
        "utimensat: nanoseconds are seen": "1.000000000 2.000000000",
        "utimensat: before 1970 is seen": "0.000000000 0.000000000",
    },
    "virtio-fs": {
        f"{call}: set-group-ID that nobody may execute is seen": "2666" for call in ("truncate", "ftruncate", "write")
    },
}
#: On the device for a root, whose attributes the guest does not ask for again.
DIFFERENT_IN_ROOT = {
    **{name: said for name, said in DIFFERENT["virtio-9p"].items() if name.startswith("utimensat: ")},
    "times after rename over a link of x": "ok .:mc",
    "times after setxattr": "ok",
}
#: There are as many; fewer mean that a section was given up.
MIN_CASES = 800

Find = Callable[[Files, str], dict[str, tuple[str, str]]]
PLACES = {
    "root": Files.found,
    "volume": Files.in_volume,
    "two mounts": Files.two_mounts,
    "two containers": Files.two_containers,
}
LONG = pytest.mark.long


def different(cases: dict[str, tuple[str, str]], way: str) -> dict[str, str]:
    """What is not right, and what happened instead."""
    assert len(cases) > MIN_CASES
    told = DIFFERENT.get(way, {})
    found = {case: happened for case, (right, happened) in cases.items() if happened != right}
    return {case: ANY if told.get(case) == ANY else happened for case, happened in found.items()}


@pytest.mark.parametrize(
    ("way", "place"),
    [
        (RUNC, "two containers"),
        ("virtio-9p", "volume"),
        pytest.param("virtio-fs", "two containers", marks=LONG),
        pytest.param("layers, memory", "root", marks=LONG),
        *(pytest.param(way, place, marks=LONG) for way in (RUNC, "virtio-fs") for place in list(PLACES)[:3]),
        *(pytest.param("virtio-9p", place, marks=LONG) for place in ("root", "two mounts", "two containers")),
        pytest.param("layers, disk", "root", marks=LONG),
    ],
)
def test_system_calls(files: Files, way: str, place: str) -> None:
    found = different(PLACES[place](files, "filecases"), way)
    expected = DIFFERENT_IN_ROOT if (way, place) == ("virtio-9p", "root") else DIFFERENT.get(way, {})
    assert found == expected, json.dumps(found, indent=1)


@pytest.mark.long
@pytest.mark.parametrize("way", ["virtio-9p"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_system_calls_on_a_disk(files: Files, kind: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run([f"mkfs.{kind}", "-q", disk], check=True, timeout=30)
    mount = f"type={kind},src={disk},dst=/data,options=loop"
    assert different(files.found("filecases", "/data/files", "--mount", mount), "a disk") == {}
