"""kill -9 of a pod's processes, or of containerd, at any moment of its life: the pod can be removed, nothing stays."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from kata.protocols import cri_pb2 as pb
from tests.support.containerd import PrivateContainerd
from tests.support.cri import Cri
from tests.support.images import BUSYBOX
from tests.support.killing import ALL_THREE, CONTAINERD, PROGRAMS, REMOVAL_S, kill, remove_all
from tests.support.repeats import repeated
from tests.support.waiting import eventually

#: Seconds that a pod's life takes, from RunPodSandbox to its removal.
LIFE_S = 2.5


@pytest.fixture(scope="module")
def kata(containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cri]:
    with Cri(containerd.address, "kata", BUSYBOX, tmp_path_factory.mktemp("logs")) as cri:
        yield cri


@pytest.mark.parametrize("victim", [*PROGRAMS, ALL_THREE, CONTAINERD])
@repeated(1, round_s=120)
def test_a_pod_that_is_cut_short(kata: Cri, containerd: PrivateContainerd, victim: str, rounds: int) -> None:
    killed = 0
    for number in range(rounds):
        moment = random.uniform(0.02, LIFE_S)
        living = threading.Thread(target=_live, args=(kata, f"cut-{victim.replace(' ', '-')}-{number}"))
        living.start()
        time.sleep(moment)
        try:
            while living.is_alive():
                if kill(containerd, victim):
                    killed += 1
                    break
                time.sleep(0.01)
            living.join(REMOVAL_S)
            assert not living.is_alive(), "a call to containerd does not end"
            remove_all(kata)
        except AssertionError as error:
            raise AssertionError(f"killed {victim} after {moment:.2f} s: {error}") from error
    # A pod that cannot start at all ends before anything is killed.
    assert killed >= rounds // 2


def _live(cri: Cri, name: str) -> None:
    """A pod's whole life, as far as it gets."""
    with contextlib.suppress(grpc.RpcError, AssertionError), cri.pod(name) as pod:
        container = pod.run()
        container.exec("true")
        container.stop()
        container.remove()


def test_a_guest_that_crashes(kata: Cri) -> None:
    """A container brings its kernel down: the pod's containers have ended, and then the pod; the next is refused."""
    privileged = pb.LinuxPodSandboxConfig()
    privileged.security_context.privileged = True
    with kata.pod("crash", linux=privileged) as pod:
        other = pod.run()
        security = pb.LinuxContainerSecurityContext(privileged=True)
        pod.run("sh", "-c", "sleep 0.5; echo c >/proc/sysrq-trigger", security=security)
        assert other.wait().exit_code != 0
        eventually(
            lambda: kata.call("PodSandboxStatus", pod_sandbox_id=pod.id).status.state,
            "the pod's end",
            lambda state: state == pb.SANDBOX_NOTREADY,
        )
        with pytest.raises(grpc.RpcError, match=r"sandbox container .*(no running task|is not running)"):
            pod.run()


def test_the_hosts_network_is_refused(kata: Cri) -> None:
    linux = pb.LinuxPodSandboxConfig()
    linux.security_context.namespace_options.network = pb.NODE
    with pytest.raises(grpc.RpcError, match="host network"), kata.pod("host-network", linux=linux):
        pass
