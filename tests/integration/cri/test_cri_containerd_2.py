"""Pods under containerd 2.1, which with version 3 of the Task service runs `start` and `delete` once for a pod."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cni import Bridge
from tests.support.containerd import PrivateContainerd
from tests.support.cri import Cri, pod_containerd
from tests.support.images import BUSYBOX


@pytest.fixture(scope="module")
def containerd(
    containerd_2_programs: Path, bridge: Bridge, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrivateContainerd]:
    scratch = tmp_path_factory.mktemp("cri-2")
    configuration = scratch / "configuration.toml"
    configuration.write_text("[hypervisor.qemu]\ndefault_memory = 512\n")
    environment = {"KATA_CONF_FILE": str(configuration)}
    with pod_containerd(
        bridge, scratch, environment=environment, debug=True, programs=containerd_2_programs
    ) as containerd:
        yield containerd


@pytest.fixture(scope="module")
def cri(containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cri]:
    with Cri(containerd.address, "kata", BUSYBOX, tmp_path_factory.mktemp("logs")) as cri:
        yield cri


def test_the_containers_of_a_pod(cri: Cri, containerd: PrivateContainerd) -> None:
    with cri.pod("containerd-2") as pod:
        assert (containerd.bundle_root / pod.id / "shim.pid").exists()
        first, second = pod.run(), pod.run()
        assert not (containerd.bundle_root / second.id / "address").exists(), "no `start` was run"
        first.sh("echo shared > /dev/shm/word")
        assert second.sh("cat /dev/shm/word") == "shared\n"
        first.remove()
        assert second.sh("echo alive") == "alive\n"
        assert pod.output("sh", "-c", "echo done") == "done\n"
