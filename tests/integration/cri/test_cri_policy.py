"""A policy generated from a manifest and given to a pod by its annotation: the pod runs, and no more than that."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import tomli_w

from kata.cli.policy_generate import Wishes, generate
from kata.protocols import cri_pb2 as pb
from tests.support.containerd import PrivateContainerd
from tests.support.cri import Cri
from tests.support.images import BUSYBOX

COMMAND = ["sh", "-c", "cat /data/file; exec sleep 1000"]
ALLOWED = ["sh", "-c", "echo $COLOR"]
MANIFEST = {
    "spec": {
        "containers": [
            {
                "name": "c1",
                "image": BUSYBOX,
                "command": COMMAND[:1],
                "args": COMMAND[1:],
                "env": [{"name": "COLOR", "value": "blue"}],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }
        ]
    }
}


@pytest.fixture
def kata(containerd: PrivateContainerd, tmp_path: Path) -> Iterator[Cri]:
    with Cri(containerd.address, "kata", BUSYBOX, tmp_path) as cri:
        yield cri


def test_the_pod_runs_and_nothing_else_does(kata: Cri, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/file").write_text("of the volume\n")
    # The test's pause image runs something else than /pause.
    wishes = Wishes(execs=[ALLOWED], pause=("sleep", "2147483647"))
    text = tomli_w.dumps(generate([MANIFEST], {}, wishes).document)
    annotations = {"io.katacontainers.config.agent.policy": base64.b64encode(text.encode()).decode()}
    mounts = [pb.Mount(container_path="/data", host_path=str(tmp_path / "volume"), readonly=True)]
    with kata.pod("policy", annotations=annotations) as pod:
        container = pod.run(*COMMAND, env={"COLOR": "blue"}, mounts=mounts)
        container.wait_log("of the volume")
        assert container.exec(*ALLOWED).stdout == "blue\n"
        with pytest.raises(grpc.RpcError, match="ExecProcessRequest is blocked by policy: rule 'sh'"):
            container.exec("sh")
        with pytest.raises(grpc.RpcError, match="CreateContainerRequest is blocked by policy"):
            pod.run(*COMMAND)
