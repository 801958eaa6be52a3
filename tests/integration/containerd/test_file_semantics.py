"""What programs expect of a container's files, by a program in it: in runc, and over each way that files can come."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from kata.runtime.hypervisor.qemu.share import find_helper
from tests.support import filecheck
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.leaks import TEST_PREFIX
from tests.support.packages import python_archive

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this"), pytest.mark.timeout(180)]

PYTHON = "docker.io/library/python:test"
#: overlayfs, which a root file system is on, lets nobody make what means a whiteout to it.
ON_OVERLAY = {"whiteouts (device 0:0)": "Operation not permitted"}
#: What QEMU's 9p helper leaves out, and QEMU itself where there is no helper; see docs/limitations.md.
OVER_9P = {
    "times in nanoseconds": "is not so",
    "file capabilities": "Operation not permitted" if find_helper() else "Operation not supported",
}
#: What sometimes goes wrong: Linux 6.12 writes behind over 9p, and forgets the length of a file that others open.
UNRELIABLE_OVER_9P = ("O_APPEND from two processes",)
VIRTIO_FS = """\
[hypervisor.qemu]
default_memory = 512
shared_fs = "virtio-fs"
"""


@pytest.fixture(scope="module")
def image(containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory) -> str:
    archive = python_archive(tmp_path_factory.mktemp("python") / "python.tar", PYTHON)
    containerd.import_image(archive)
    return PYTHON


def tried(
    containerd: PrivateContainerd, image: str, options: tuple[str, ...], where: str = "/srv/check"
) -> dict[str, object]:
    """What the program does not find in a container's directory, and why."""
    mount = f"type=bind,src={filecheck.__file__},dst=/filecheck.py,options=rbind:ro"
    flags = (*options, "--cap-add", "CAP_SETFCAP", "--mount", mount)
    command = (image, unique_id(TEST_PREFIX), "/usr/bin/python3", "/filecheck.py", where)
    found = json.loads(containerd.ctr("run", "--rm", *flags, *command, timeout=120).stdout)
    assert set(found) == set(filecheck.CHECKS)
    return {name: said for name, said in found.items() if said is not True}


def test_in_runc(containerd: PrivateContainerd, image: str) -> None:
    assert tried(containerd, image, ("--runtime", "io.containerd.runc.v2")) == ON_OVERLAY


def test_over_9p(containerd: PrivateContainerd, image: str) -> None:
    found = tried(containerd, image, ("--runtime", RUNTIME))
    for name in UNRELIABLE_OVER_9P:
        found.pop(name, None)
    assert found == {**ON_OVERLAY, **OVER_9P}


def test_over_virtio_fs(containerd: PrivateContainerd, image: str, tmp_path: Path) -> None:
    configuration = tmp_path / "configuration.toml"
    configuration.write_text(VIRTIO_FS)
    options = ("--runtime", RUNTIME, "--runtime-config-path", str(configuration))
    assert tried(containerd, image, options) == ON_OVERLAY


@pytest.fixture
def disk(tmp_path: Path) -> str:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(path)], check=True, timeout=30)
    return str(path)


def test_on_a_disk(containerd: PrivateContainerd, image: str, disk: str) -> None:
    options = ("--runtime", RUNTIME, "--mount", f"type=ext4,src={disk},dst=/data,options=loop")
    assert tried(containerd, image, options, "/data/check") == {}
