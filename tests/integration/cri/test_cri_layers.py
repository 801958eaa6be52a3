"""Pods whose root file systems are layers on disks: each made once, counted, committed, kept as long as it is used.

Two pods share the cases: they start at the same moment, with an empty layer cache.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from kata.protocols import cri_pb2 as pb
from kata.runtime.images.layer_cache import LayerCache
from tests.support.cni import Bridge
from tests.support.containerd import PrivateContainerd
from tests.support.cri import Container, Cri, Pod, pod_containerd
from tests.support.images import busybox_rootfs, layer_of
from tests.support.waiting import eventually
from tests.unit.runtime.images.builder import Oci, directory, entry, layer

#: Of two layers: the lower one is that of the pause image as well, the upper one differs.
IMAGE, *OTHERS = (f"docker.io/library/layers:{number}" for number in range(1, 4))
MIB = 1 << 20
KATA = str(Path(sys.executable).with_name("kata"))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layers")


@pytest.fixture(scope="module")
def containerd(bridge: Bridge, scratch: Path) -> Iterator[PrivateContainerd]:
    configuration = scratch / "configuration.toml"
    configuration.write_text(
        f"[hypervisor.qemu]\ndefault_memory = 512\n[runtime]\nrootfs_layers = 'disks'\nrootfs_upper = 'host'\n"
        f"layer_cache_path = '{scratch}/cache'\n"
    )
    with pod_containerd(bridge, scratch, environment={"KATA_CONF_FILE": str(configuration)}, debug=True) as containerd:
        (scratch / "rootfs").mkdir()
        busybox_rootfs(scratch / "rootfs")
        lower = layer_of(scratch / "rootfs")
        for name, said in ((IMAGE, b"above\n"), *((name, f"{name}\n".encode()) for name in OTHERS)):
            upper = layer(directory("root", mode=0o700), entry("root/a", said), entry("root/b", b"b\n"))
            oci = Oci(lower, upper, config={"Cmd": ["sleep", "1000"], "Env": ["PATH=/bin"]})
            oci.descriptors[0]["annotations"] = {
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": name.rpartition(":")[2],
            }
            assert name in containerd.import_image(oci.write(scratch / "image.tar"))
        yield containerd


@pytest.fixture(scope="module")
def cri(containerd: PrivateContainerd, scratch: Path) -> Iterator[Cri]:
    with Cri(containerd.address, "kata", IMAGE, scratch) as cri:
        yield cri


@pytest.fixture(scope="module")
def pods(cri: Cri, scratch: Path) -> Iterator[list[tuple[Pod, Container]]]:
    """Two pods, made at once, with a container each."""
    with ExitStack() as stack:

        def start(name: str) -> tuple[Pod, Container]:
            pod = stack.enter_context(cri.pod(name))
            return pod, pod.run(image=IMAGE)

        with ThreadPoolExecutor(2) as starters:
            yield list(starters.map(start, ("one", "two")))
    # The kernel drops the locks of an entry with the process that had them.
    cache = LayerCache(scratch / "cache", 0)
    eventually(lambda: [*cache.prune(), *cache.entries()], "that nobody uses a layer", lambda left: left == [])


def disks(pod: Pod) -> list[list[str]]:
    """The containers that have each disk of a pod."""
    done = subprocess.run([KATA, "inspect", pod.id], capture_output=True, text=True, timeout=30, check=True)
    return [device["containers"] for device in json.loads(done.stdout)["devices"]]


def test_two_pods_make_each_layer_once(pods: list[tuple[Pod, Container]], scratch: Path) -> None:
    for pod, container in pods:
        assert container.sh("cat /root/a") == "above\n"
        assert sorted(disks(pod)) == sorted([[container.id], sorted([container.id, pod.id])])
    assert [name.partition("-")[0] for name in os.listdir(scratch / "cache")] == ["directory"] * 2


def test_two_containers_of_an_image(pods: list[tuple[Pod, Container]]) -> None:
    """They have the same disks, and what one writes the other does not see; nor does the next one in its place."""
    pod, first = pods[0]
    for _ in range(2):
        second = pod.run(image=IMAGE)
        assert second.sh("cat /root/a; echo second >>/root/a; rm /root/b") == "above\n"
        assert sorted(map(len, disks(pod))) == [2, 3]
        second.remove()
    assert first.sh("cat /root/a /root/b") == "above\nb\n"
    assert sorted(map(len, disks(pod))) == [1, 2]


def test_a_disk_that_was_emptied_is_filled_with_another_layer(pods: list[tuple[Pod, Container]]) -> None:
    """The guest sees nothing of what was on it before."""
    pod, container = pods[0]
    seen = [pod.output("cat", "/proc/partitions", "/root/a", image=name).splitlines() for name in (*OTHERS, *OTHERS)]
    assert [lines.pop() for lines in seen] == [*OTHERS, *OTHERS]
    assert seen == [container.sh("cat /proc/partitions").splitlines()] * len(seen), "none was plugged"


def test_what_is_written_counts(cri: Cri, pods: list[tuple[Pod, Container]]) -> None:
    """The kubelet evicts pods by it."""
    _, container = pods[0]
    container.sh(f"dd if=/dev/zero of=/root/large bs={MIB} count=8 2>/dev/null && sync")
    usage = eventually(
        lambda: container.stats().writable_layer,
        "the usage of the writable layer",
        lambda usage: usage.used_bytes.value >= 8 * MIB,
    )
    assert usage.used_bytes.value < 16 * MIB
    (filesystem,) = cri.call("ImageFsInfo").image_filesystems
    assert filesystem.used_bytes.value > usage.used_bytes.value
    assert filesystem.fs_id.mountpoint == usage.fs_id.mountpoint


def test_what_is_written_can_be_committed(containerd: PrivateContainerd, pods: list[tuple[Pod, Container]]) -> None:
    """By the service that `nerdctl commit` calls."""
    _, container = pods[1]
    container.sh("echo more >>/root/a; rm /root/b; mkdir /new; chown 12:34 /new; ln -s a /root/link; sync")
    command = containerd.ctr_command("snapshots", "diff", container.id)
    done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        written = {member.name.strip("/"): member for member in archive}
        content = archive.extractfile(written["root/a"])
        assert content is not None
        assert content.read() == b"above\nmore\n"
    assert set(written) >= {"root/a", "root/.wh.b", "root/link", "new"}
    assert (written["new"].uid, written["new"].gid) == (12, 34)


def test_a_layer_in_use_stays(cri: Cri, pods: list[tuple[Pod, Container]], scratch: Path) -> None:
    """Whether its image is removed, or the layer cache pruned."""
    cri.call("RemoveImage", image=pb.ImageSpec(image=IMAGE))
    cache = LayerCache(scratch / "cache", 0)
    cache.prune()
    assert [entry.in_use for entry in cache.entries()] == [True, True]
    for _, container in pods:
        assert container.sh("head -n 1 /root/a; md5sum /bin/busybox | wc -c").split() == ["above", "47"]
