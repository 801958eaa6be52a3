"""One containerd with its CRI plugin, a network, and each case twice: in runc, which says what is right; in kata."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cni import PLUGINS, Bridge
from tests.support.containerd import PrivateContainerd
from tests.support.cri import Cri, Pod, pod_containerd
from tests.support.images import BUSYBOX
from tests.support.leaks import POD_IDS, assert_nothing_left, snapshot

CONFIGURATION = """\
[hypervisor.qemu]
default_memory = 512
enable_annotations = ["policy"]
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.containerd)
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.timeout(180))
            if not (PLUGINS / "bridge").exists() or shutil.which("ip") is None:
                item.add_marker(pytest.mark.skip(reason="needs containernetworking-plugins and iproute2"))


@pytest.fixture(scope="session")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    with Bridge(f"kp{os.getpid()}", tmp_path_factory.mktemp("cni")) as bridge:
        yield bridge


@pytest.fixture(scope="session")
def containerd(bridge: Bridge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateContainerd]:
    scratch = tmp_path_factory.mktemp("cri")
    configuration = scratch / "configuration.toml"
    configuration.write_text(CONFIGURATION)
    environment = {"KATA_CONF_FILE": str(configuration)}
    with pod_containerd(bridge, scratch, environment=environment, debug=True) as containerd:
        yield containerd


@pytest.fixture(scope="session", params=["runc", "kata"])
def cri(
    request: pytest.FixtureRequest, containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cri]:
    with Cri(containerd.address, request.param, BUSYBOX, tmp_path_factory.mktemp("logs")) as cri:
        yield cri


@pytest.fixture(scope="module")
def pod(cri: Cri, request: pytest.FixtureRequest) -> Iterator[Pod]:
    """A pod that the cases of a module share."""
    with cri.pod(request.module.__name__.rpartition("test_")[2].replace("_", "-")) as pod:
        yield pod


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each case gives back what it took; a module's shared pod is not a case's."""
    if "pod" in request.fixturenames:
        request.getfixturevalue("pod")
    before = snapshot(POD_IDS)
    yield
    # A pod that was given up while its VM boots ends when that has booted.
    assert_nothing_left(before, POD_IDS, within_s=90.0)


@pytest.fixture(autouse=True)
def containerd_log(containerd: PrivateContainerd) -> Iterator[None]:
    """On a failure pytest shows what containerd and the shims logged during the case."""
    begin = len(containerd.log_text())
    yield
    print(containerd.log_text()[begin:][-6000:])  # noqa: T201
