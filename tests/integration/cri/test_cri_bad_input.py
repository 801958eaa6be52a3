"""What a pod may be asked for and cannot have: a clear error; the rest of the pod goes on, or all of it goes away."""

from __future__ import annotations

import hashlib
import itertools
import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from kata.protocols import cri_pb2 as pb
from tests.support.cri import Cri, Pod
from tests.support.repeats import repeated

MIB = 1 << 20


@pytest.fixture
def own(cri: Cri, request: pytest.FixtureRequest) -> Iterator[Pod]:
    """A pod of the case's own, which may end as it likes."""
    with cri.pod(request.function.__name__.replace("_", "-")[5:60]) as pod:
        yield pod


def test_configmaps_of_no_and_of_three_million_bytes(pod: Pod, tmp_path: Path) -> None:
    large = b"0123456789abcdef" * (3 * MIB // 16)
    volume = tmp_path / "volumes/kubernetes.io~configmap/sizes"
    data = volume / "..2026_01_01"
    data.mkdir(parents=True)
    (data / "empty").touch()
    (data / "large").write_bytes(large)
    (volume / "..data").symlink_to(data.name)
    for name in ("empty", "large"):
        (volume / name).symlink_to(f"..data/{name}")
    container = pod.run(mounts=[pb.Mount(container_path="/config", host_path=str(volume), readonly=True)])
    assert container.sh("wc -c </config/empty; md5sum </config/large").split()[:2] == [
        "0",
        hashlib.md5(large).hexdigest(),
    ]
    container.remove()


def test_a_memory_limit_that_nothing_fits_in(pod: Pod) -> None:
    """It fails, is killed or lives, as the kernel likes; the pod and its other containers do not mind."""
    other = pod.run()
    with suppress(grpc.RpcError):
        container = pod.create(resources=pb.LinuxContainerResources(memory_limit_in_bytes=16 * 1024))
        with suppress(grpc.RpcError):
            container.start()
        container.remove()
    assert other.sh("echo alive") == "alive\n"
    other.remove()
    pod.run().remove()


def test_a_network_namespace_whose_path_is_gone(own: Pod, cri: Cri) -> None:
    """The pod has it still."""
    info = cri.call("PodSandboxStatus", pod_sandbox_id=own.id, verbose=True).info["info"]
    netns = info.split('"type":"network","path":"')[1].split('"')[0]
    subprocess.run(["umount", netns], check=True)
    Path(netns).unlink()
    assert "eth0" in own.output("ip", "addr")


@pytest.mark.parametrize("count", [15, pytest.param(50, marks=pytest.mark.long)])
def test_many_containers(own: Pod, count: int) -> None:
    containers = [own.run() for _ in range(count)]
    assert containers[0].sh("echo first") == "first\n"
    assert containers[-1].sh("echo last") == "last\n"
    with ThreadPoolExecutor(8) as removers:
        list(removers.map(lambda container: container.remove(), containers))


@repeated(1, round_s=60)
def test_creation_and_removal_at_once(cri: Cri, rounds: int) -> None:
    """Whoever comes first wins; the other one is told, and nothing stays."""
    for _ in range(rounds):
        with cri.pod("at-once") as pod:
            created = threading.Event()

            def create(pod: Pod = pod, created: threading.Event = created) -> None:
                with suppress(grpc.RpcError):
                    for _ in range(3):
                        pod.run()
                        created.set()
                created.set()

            creating = threading.Thread(target=create)
            creating.start()
            created.wait(60)
            cri.call("StopPodSandbox", pod_sandbox_id=pod.id)
            creating.join(60)
            assert not creating.is_alive()


def test_a_volume_is_swapped_for_a_symlink_while_containers_start(pod: Pod, tmp_path: Path) -> None:
    """Each container has the one directory or the other as a whole, or there is an error that says why."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        for file in ("first", "second"):
            (tmp_path / name / file).write_text(name)
    volume = tmp_path / "volume"
    volume.symlink_to("one")
    over = threading.Event()

    def swap() -> None:
        targets = itertools.cycle(("other", "gone", "one"))
        while not over.wait(0.003):
            (tmp_path / "next").symlink_to(next(targets))
            (tmp_path / "next").rename(volume)

    swapping = threading.Thread(target=swap)
    swapping.start()
    started = 0
    errors: list[str] = []
    try:
        while started < 4 and len(errors) < 40:
            mount = pb.Mount(container_path="/data", host_path=str(volume), readonly=True)
            container = None
            try:
                container = pod.create(mounts=[mount])
                container.start()
                found = container.sh("cat /data/first; echo; cat /data/second").split()
            except grpc.RpcError as error:
                errors.append(error.details() or "")
            else:
                assert found in (["one", "one"], ["other", "other"])
                started += 1
            finally:
                if container is not None:
                    container.remove()
    finally:
        over.set()
        swapping.join(20)
    assert started == 4
    assert [error for error in errors if not re.search(r"volume|/gone|no such file", error)] == []
    assert pod.output("echo", "unharmed") == "unharmed\n"
