"""Nothing that is appended is lost, wherever files are: see `kata.osbuilder.patched_module`.

A root that is a directory is in tests/vm/test_run.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import oracle
from tests.support.appending import lost, script
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.fileways import bind, in_pod
from tests.support.images import BUSYBOX

pytestmark = [
    pytest.mark.containerd,
    pytest.mark.long,
    pytest.mark.usefixtures("nothing_left_by_this"),
    pytest.mark.timeout(240),
]

RUNC = ("--runtime", oracle.RUNC)
#: With a volume that a container may write to, `shared_fs = "auto"` is virtio-fs.
VIRTIO_FS = ("--runtime", RUNTIME)


@pytest.fixture
def over_9p(tmp_path: Path) -> tuple[str, ...]:
    configuration = tmp_path / "configuration.toml"
    configuration.write_text('[hypervisor.qemu]\ndefault_memory = 512\nshared_fs = "virtio-9p"\n')
    return "--runtime", RUNTIME, "--runtime-config-path", str(configuration)


def appended(containerd: PrivateContainerd, directory: str, *options: str) -> int:
    """Records that are lost in a container. The options end with its image."""
    command = ("run", "--rm", *options, unique_id("append"), "sh", "-c", script(directory))
    return lost(containerd.ctr(*command, timeout=180).stdout)


@pytest.mark.parametrize("options", [RUNC, VIRTIO_FS], ids=["runc", "virtio-fs"])
def test_in_a_volume(containerd: PrivateContainerd, options: tuple[str, ...], tmp_path: Path) -> None:
    assert appended(containerd, "/data", *options, *bind(tmp_path, "/data"), BUSYBOX) == 0


def test_in_a_volume_over_9p(containerd: PrivateContainerd, over_9p: tuple[str, ...], tmp_path: Path) -> None:
    assert appended(containerd, "/data", *over_9p, *bind(tmp_path, "/data"), BUSYBOX) == 0


def test_in_the_root_on_its_own_device(containerd: PrivateContainerd, over_9p: tuple[str, ...]) -> None:
    assert appended(containerd, "/srv", *over_9p, BUSYBOX) == 0


def test_in_the_second_container_of_a_pod(containerd: PrivateContainerd, over_9p: tuple[str, ...]) -> None:
    """Its root is in the shared tree: the first one has the device."""
    pod, first = unique_id("pod"), unique_id("first")
    containers = {pod: in_pod(pod, "sandbox"), first: in_pod(pod, "container")}
    try:
        for container_id, annotations in containers.items():
            containerd.ctr("run", "--detach", *over_9p, *annotations, BUSYBOX, container_id, "sleep", "600")
        assert appended(containerd, "/srv", *over_9p, *in_pod(pod, "container"), BUSYBOX) == 0
    finally:
        for container_id in reversed(containers):
            containerd.ctr("task", "delete", "--force", container_id, check=False)
            containerd.ctr("container", "delete", container_id, check=False)
