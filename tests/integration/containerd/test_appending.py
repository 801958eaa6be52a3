"""Appending to a file while another program asks for its length, as `tail -f` and `ls -l` do.

Linux 6.12 in the guest writes behind over 9p, and takes the length that the host tells for the true one. The tailored
kernel has a patch against that (`src/kata/kernel_build/patches`).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kata.osbuilder import store
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.packages import python_archive

pytestmark = [
    pytest.mark.containerd,
    pytest.mark.long,
    pytest.mark.usefixtures("nothing_left_by_this"),
    pytest.mark.timeout(240),
]

IMAGE = "docker.io/library/python:appending"
ROUNDS, RECORDS = 3, 400
#: Prints how many records are lost in each round.
PROGRAM = f"""
import os, sys
os.makedirs(sys.argv[1], exist_ok=True)
os.chdir(sys.argv[1])
for number in range({ROUNDS}):
    name = f"log{{number}}"
    log = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    child = os.fork()
    if not child:
        while not os.path.exists(f"{{name}}.done"):
            os.stat(name)
        os._exit(0)
    for _ in range({RECORDS}):
        os.write(log, b"123456789\\n")
    os.close(log)
    open(f"{{name}}.done", "w").close()
    os.waitpid(child, 0)
    print({RECORDS} - open(name, "rb").read().count(b"123456789\\n"))
"""


@pytest.fixture(scope="module")
def image(containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory) -> str:
    containerd.import_image(python_archive(tmp_path_factory.mktemp("python") / "python.tar", IMAGE))
    return IMAGE


def lost(
    containerd: PrivateContainerd, image: str, options: tuple[str, ...], volume: Path, directory: str = "/data"
) -> int:
    """Records that are lost, of all rounds."""
    volume.mkdir()
    mount = ("--mount", f"type=bind,src={volume},dst=/data,options=rbind:rw")
    program = ("/usr/bin/python3", "-c", PROGRAM, directory)
    command = ("run", "--rm", *options, *mount, image, unique_id("append"), *program)
    counts = [int(line) for line in containerd.ctr(*command, timeout=180).stdout.split()]
    assert len(counts) == ROUNDS
    return sum(counts)


def test_nothing_is_lost_in_runc(containerd: PrivateContainerd, image: str, tmp_path: Path) -> None:
    assert lost(containerd, image, ("--runtime", "io.containerd.runc.v2"), tmp_path / "volume") == 0


def test_nothing_is_lost_over_virtio_fs(containerd: PrivateContainerd, image: str, tmp_path: Path) -> None:
    """Which a volume that a container may write to makes of `shared_fs = "auto"`."""
    assert lost(containerd, image, ("--runtime", RUNTIME), tmp_path / "volume") == 0


@pytest.fixture
def over_9p(tmp_path: Path) -> tuple[str, ...]:
    configuration = tmp_path / "configuration.toml"
    configuration.write_text('[hypervisor.qemu]\ndefault_memory = 512\nshared_fs = "virtio-9p"\n')
    return "--runtime", RUNTIME, "--runtime-config-path", str(configuration)


def test_records_are_lost_in_a_volume_over_9p_unless_the_kernel_is_patched(
    containerd: PrivateContainerd, image: str, over_9p: tuple[str, ...], tmp_path: Path
) -> None:
    """If this fails with Debian's kernel, a row of docs/limitations.md is no longer true."""
    patched = "kernel" in store.find().manifest
    assert (lost(containerd, image, over_9p, tmp_path / "volume") == 0) == patched


def test_nothing_is_lost_in_a_root_over_9p(
    containerd: PrivateContainerd, image: str, over_9p: tuple[str, ...], tmp_path: Path
) -> None:
    assert lost(containerd, image, over_9p, tmp_path / "volume", "/srv") == 0
