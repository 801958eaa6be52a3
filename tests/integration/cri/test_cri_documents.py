"""The documents' commands about pods, as somebody would paste them (tests/support/documents.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.protocols import cri_pb2 as pb
from tests.support.containerd import PrivateContainerd
from tests.support.cri import Cri, Pod
from tests.support.documents import Block, all_blocks, run
from tests.support.images import BUSYBOX

#: The pod's first container, by the name that `Pod.create` gives it.
NAMES = {"nginx": "c1"}


@pytest.fixture(scope="module")
def pod(containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    metadata = pb.PodSandboxMetadata(name="web-7d4b9", uid="web-uid", namespace="default")
    with Cri(containerd.address, "kata", BUSYBOX, tmp_path_factory.mktemp("logs")) as cri:
        with cri.pod("web-7d4b9", metadata=metadata) as pod:
            pod.run()
            yield pod


@pytest.mark.parametrize(
    "block", [pytest.param(block, id=block.name) for block in all_blocks() if block.setting == "pod"]
)
def test_with_a_pod(block: Block, pod: Pod, containerd: PrivateContainerd, tmp_path: Path) -> None:
    run(block, tmp_path, names=NAMES, conf_file=Path(containerd.environment["KATA_CONF_FILE"]))
