"""What programs expect of a container's files, by programs in it: in runc, and over each way that files can come.

One program for what a file system is; then two that have one directory by two mounts of a container, and two in two
containers of a pod.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Collection
from pathlib import Path

import pytest

from kata.runtime.hypervisor.qemu.share import find_helper
from tests.support import filecheck
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.leaks import TEST_PREFIX
from tests.support.packages import python_archive

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this"), pytest.mark.timeout(300)]

PYTHON = "docker.io/library/python:test"
RUNC = "io.containerd.runc.v2"
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
#: What sometimes goes wrong: Linux 6.12 writes behind over 9p, and forgets the length of a file that others open.
UNRELIABLE_OVER_9P = ("O_APPEND from two processes", "O_APPEND")
CONFIGURATION = """\
[hypervisor.qemu]
default_memory = 512
shared_fs = "{shared_fs}"
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
    done = containerd.ctr(*command(image, *options, "--cap-add", "CAP_SETFCAP", program=(where,)), timeout=120)
    return missed(done.stdout, filecheck.CHECKS)


def command(image: str, *options: str, program: tuple[str, ...], container_id: str = "") -> tuple[str, ...]:
    mount = bind(filecheck.__file__, "/filecheck.py", "ro")
    python = ("/usr/bin/python3", "/filecheck.py", *program)
    return ("run", "--rm", *options, *mount, image, container_id or unique_id(TEST_PREFIX), *python)


def bind(source: str | Path, destination: str, *options: str) -> tuple[str, ...]:
    return "--mount", f"type=bind,src={source},dst={destination},options={':'.join(('rbind', *options))}"


def missed(output: str, checks: Collection[str]) -> dict[str, object]:
    found = json.loads(output)
    assert set(found) == set(checks)
    return {name: said for name, said in found.items() if said is not True}


def two_mounts(containerd: PrivateContainerd, image: str, options: tuple[str, ...], volume: Path) -> dict[str, object]:
    """What two programs miss that have a volume by two mounts of one container."""
    mounts = (*bind(volume, "/a"), *bind(volume, "/b"))
    done = containerd.ctr(*command(image, *options, *mounts, program=("/a", "/b")), timeout=200)
    return missed(done.stdout, filecheck.PAIRS)


def two_containers(
    containerd: PrivateContainerd, image: str, options: tuple[str, ...], volume: Path
) -> dict[str, object]:
    """What two programs miss that have a volume in two containers of one pod."""
    pod, port = unique_id(TEST_PREFIX), str(free_port())
    options = (*options, *bind(volume, "/data"))
    first = command(image, *options, *in_pod(pod, "sandbox"), program=("--serve", "/data", port), container_id=pod)
    second = command(image, *options, *in_pod(pod, "container"), program=("/data", f":{port}"))
    with subprocess.Popen(containerd.ctr_command(*first), stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout
            assert other.stdout.readline() == "ready\n"
            # In runc both have one shim, which may end before ctr has deleted the second: what it said counts.
            done = containerd.ctr(*second, timeout=200, check=False)
            assert other.wait(60) == 0
        finally:
            other.kill()
    return missed(done.stdout, filecheck.PAIRS)


def in_pod(pod: str, kind: str) -> tuple[str, ...]:
    annotations = (f"io.kubernetes.cri.container-type={kind}", f"io.kubernetes.cri.sandbox-id={pod}")
    return tuple(word for annotation in annotations for word in ("--annotation", annotation))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_in_runc(containerd: PrivateContainerd, image: str) -> None:
    assert tried(containerd, image, ("--runtime", RUNC)) == ON_OVERLAY


def test_over_9p(containerd: PrivateContainerd, image: str, tmp_path: Path) -> None:
    found = tried(containerd, image, over("virtio-9p", tmp_path))
    for name in UNRELIABLE_OVER_9P:
        found.pop(name, None)
    assert found == {**ON_OVERLAY, **OVER_9P}


def test_over_virtio_fs(containerd: PrivateContainerd, image: str, tmp_path: Path) -> None:
    assert tried(containerd, image, over("virtio-fs", tmp_path)) == ON_OVERLAY


def over(shared_fs: str, directory: Path) -> tuple[str, ...]:
    configuration = directory / "configuration.toml"
    configuration.write_text(CONFIGURATION.format(shared_fs=shared_fs))
    return ("--runtime", RUNTIME, "--runtime-config-path", str(configuration))


@pytest.mark.parametrize("upper", ["disk", "memory"])
def test_on_layers(containerd: PrivateContainerd, image: str, tmp_path: Path, upper: str) -> None:
    configuration = tmp_path / "configuration.toml"
    configuration.write_text(
        f"[hypervisor.qemu]\ndefault_memory = 512\n[runtime]\nrootfs_layers = 'disks'\nrootfs_upper = '{upper}'\n"
    )
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


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    path.mkdir()
    return path


class TestTwoMounts:
    def test_in_runc(self, containerd: PrivateContainerd, image: str, volume: Path) -> None:
        assert two_mounts(containerd, image, ("--runtime", RUNC), volume) == {}

    @pytest.mark.long
    def test_over_9p(self, containerd: PrivateContainerd, image: str, volume: Path, tmp_path: Path) -> None:
        found = two_mounts(containerd, image, over("virtio-9p", tmp_path), volume)
        for name in UNRELIABLE_OVER_9P:
            found.pop(name, None)
        assert found == PAIR_OVER_9P

    def test_over_virtio_fs(self, containerd: PrivateContainerd, image: str, volume: Path, tmp_path: Path) -> None:
        assert two_mounts(containerd, image, over("virtio-fs", tmp_path), volume) == {}


class TestTwoContainers:
    def test_in_runc(self, containerd: PrivateContainerd, image: str, volume: Path) -> None:
        assert two_containers(containerd, image, ("--runtime", RUNC, "--net-host"), volume) == {}

    def test_over_9p(self, containerd: PrivateContainerd, image: str, volume: Path, tmp_path: Path) -> None:
        found = two_containers(containerd, image, over("virtio-9p", tmp_path), volume)
        for name in UNRELIABLE_OVER_9P:
            found.pop(name, None)
        assert found == PAIR_OVER_9P

    def test_over_virtio_fs(self, containerd: PrivateContainerd, image: str, volume: Path, tmp_path: Path) -> None:
        assert two_containers(containerd, image, over("virtio-fs", tmp_path), volume) == {}
