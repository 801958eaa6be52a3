"""Files of the host in containers, and between containers."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kata.linux.mount import bind, umount
from kata.protocols import cri_pb2 as pb
from tests.support.cri import Cri, Pod
from tests.support.waiting import eventually


def mount(source: Path, target: str, *, readonly: bool = False) -> pb.Mount:
    return pb.Mount(container_path=target, host_path=str(source), readonly=readonly)


def test_hostpath(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "from-host").write_text("hello\n")
    container = pod.run(mounts=[mount(tmp_path, "/data")])
    assert container.sh("cat /data/from-host; echo reply > /data/from-guest") == "hello\n"
    assert (tmp_path / "from-guest").read_text() == "reply\n"
    (tmp_path / "later").write_text("later\n")
    assert container.sh("cat /data/later") == "later\n"
    container.remove()


def test_read_only_volume(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("fixed\n")
    container = pod.run(mounts=[mount(tmp_path, "/data", readonly=True)])
    assert container.sh("cat /data/file") == "fixed\n"
    assert "Read-only file system" in container.exec("touch", "/data/new").stderr
    container.remove()


def test_file_volume(pod: Pod, tmp_path: Path) -> None:
    path = tmp_path / "single"
    path.write_text("one file\n")
    container = pod.run(mounts=[mount(path, "/etc/single.conf")])
    assert container.sh("cat /etc/single.conf; echo changed > /etc/single.conf") == "one file\n"
    assert path.read_text() == "changed\n"
    container.remove()


def test_shared_volume(pod: Pod, tmp_path: Path) -> None:
    first, second = (pod.run(mounts=[mount(tmp_path, "/shared")]) for _ in range(2))
    first.sh("echo word > /shared/file")
    assert second.sh("cat /shared/file") == "word\n"
    first.remove()
    assert second.sh("cat /shared/file") == "word\n"
    second.remove()


def test_a_pod_whose_volume_the_kubelet_has_made_has_virtio_fs(cri: Cri, kubelets_volume: Path) -> None:
    """Which volumes a pod has, the shim learns before it starts the VM."""
    with cri.pod(kubelets_volume.parts[5].removesuffix("-uid")) as pod:
        container = pod.run(mounts=[mount(kubelets_volume, "/data")])
        (kind,) = container.sh("grep ' /data ' /proc/mounts | cut -d ' ' -f 3").split()
    assert (kind == "virtiofs") == (cri.handler == "kata")


@pytest.fixture
def kubelets_volume(cri: Cri) -> Iterator[Path]:
    """A volume of a storage driver, where the kubelet makes it for the pod of its uid."""
    directory = Path(f"/var/lib/kubelet/pods/{cri.handler}-{os.getpid()}-uid")
    volume = directory / "volumes/kubernetes.io~csi/data/mount"
    volume.mkdir(parents=True)
    yield volume
    shutil.rmtree(directory)
    with suppress(OSError):  # a kubelet runs here
        os.removedirs(directory.parent)


def test_a_volume_that_is_mounted_while_its_pod_runs(pod: Pod, tmp_path: Path) -> None:
    """What the host mounts beneath it later is seen as well (HostToContainer), whether its "/" is shared or private."""
    volume = tmp_path / "volume"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "volume", str(volume)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(volume)], check=True)
        (volume / "later").mkdir()
        entry = mount(volume, "/data")
        entry.MergeFromString(b"\x28\x01")  # propagation: HOST_TO_CONTAINER
        container = pod.run(mounts=[entry])
        assert container.sh("ls /data") == "later\n"
        subprocess.run(["mount", "-t", "tmpfs", "later", str(volume / "later")], check=True)
        (volume / "later/file").write_text("mounted later\n")
        assert container.sh("cat /data/later/file") == "mounted later\n"
        container.remove()
    finally:
        subprocess.run(["umount", "--recursive", str(volume)], check=True)


def test_empty_dir_of_the_host(pod: Pod, tmp_path: Path) -> None:
    """As the kubelet makes it, by its path."""
    volume = tmp_path / "pods/uid/volumes/kubernetes.io~empty-dir/cache"
    volume.mkdir(parents=True)
    volume.chmod(0o777)
    first, second = (pod.run(mounts=[mount(volume, "/cache")]) for _ in range(2))
    first.sh("echo cached > /cache/file")
    assert second.sh("cat /cache/file") == "cached\n"
    first.remove()
    second.remove()


def test_a_volume_as_shared_memory(pod: Pod, tmp_path: Path) -> None:
    """How pods get a larger /dev/shm than the 64 MiB that the engine gives them."""
    volume = tmp_path / "pods/uid/volumes/kubernetes.io~empty-dir/dshm"
    volume.mkdir(parents=True)
    pod.output("sh", "-c", "echo large > /dev/shm/file", mounts=[mount(volume, "/dev/shm")])
    assert (volume / "file").read_text() == "large\n"


def test_unix_socket_in_a_shared_volume(pod: Pod, tmp_path: Path) -> None:
    volume = tmp_path / "pods/uid/volumes/kubernetes.io~empty-dir/socket"
    volume.mkdir(parents=True)
    server = pod.run("sh", "-c", "nc -lk -s local:/run/s/sock -e cat; sleep 1000", mounts=[mount(volume, "/run/s")])
    client = pod.run(mounts=[mount(volume, "/run/s")])
    # Debian's busybox has no nc over Unix sockets: that a socket can be made and seen is what is asked here.
    server.sh("mkfifo /run/s/pipe; ls -l /run/s/pipe")
    assert client.sh("test -p /run/s/pipe && echo pipe") == "pipe\n"
    server.remove()
    client.remove()


@pytest.fixture
def subpath(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A volume and a part of it, as the kubelet mounts a subPath before it creates the container."""
    volume = tmp_path / "pods/uid/volumes/kubernetes.io~empty-dir/data"
    part = tmp_path / "pods/uid/volume-subpaths/data/box/0"
    (volume / "sub").mkdir(parents=True)
    part.mkdir(parents=True)
    bind(str(volume / "sub"), str(part))
    try:
        yield volume, part
    finally:
        umount(str(part))


def test_a_volume_and_a_part_of_it_are_one(cri: Cri, subpath: tuple[Path, Path]) -> None:
    """A FIFO joins two programs only if it is one file for the kernel; also after one of them was restarted."""
    volume, part = subpath
    with cri.pod("subpath") as pod:
        whole = pod.run(mounts=[mount(volume, "/data")])
        for number in range(2):
            some = pod.run(mounts=[mount(part, "/part")])
            # Who opens a FIFO waits for the other end, and must not keep the streams of the exec meanwhile.
            whole.sh(f"mkfifo /data/sub/{number}; (echo through >/data/sub/{number}) >/dev/null 2>&1 </dev/null &")
            assert some.sh(f"timeout 20 cat /part/{number}") == "through\n"
            some.remove()
        some = pod.run(mounts=[mount(part, "/part")])
        whole.remove()
        some.sh("echo still >/part/file")
        assert (volume / "sub/file").read_text() == "still\n"
        some.remove()


def atomic(volume: Path, number: int, files: dict[str, bytes]) -> None:
    """Write a volume as the kubelet does: a new directory, then one rename of a link to it."""
    directory = volume / f"..{number}"
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"..data/{name}")
    fresh = volume / "..data_tmp"
    fresh.symlink_to(directory.name)
    os.replace(fresh, volume / "..data")


def test_configmap_updates(pod: Pod, tmp_path: Path) -> None:
    volume = tmp_path / "pods/uid/volumes/kubernetes.io~configmap/config"
    volume.mkdir(parents=True)
    atomic(volume, 1, {"key": b"old", "empty": b"", "large": b"x" * 3_000_000})
    container = pod.run(mounts=[mount(volume, "/config", readonly=True)])
    assert container.sh("cat /config/key /config/empty; wc -c < /config/large") == "old3000000\n"
    atomic(volume, 2, {"key": b"new"})
    eventually(lambda: container.sh("cat /config/key"), "the new text", lambda text: text == "new")
    container.remove()


def test_projected_and_optional_volumes(pod: Pod, tmp_path: Path) -> None:
    projected = tmp_path / "pods/uid/volumes/kubernetes.io~projected/all"
    optional = tmp_path / "pods/uid/volumes/kubernetes.io~secret/optional"
    for volume in (projected, optional):
        volume.mkdir(parents=True)
    atomic(projected, 1, {"token": b"secret", "labels": b'app="x"'})
    mounts = [mount(projected, "/all", readonly=True), mount(optional, "/optional", readonly=True)]
    container = pod.run(mounts=mounts)
    assert container.sh("cat /all/token /all/labels; ls -A /optional") == 'secretapp="x"'
    container.remove()


def test_termination_log(pod: Pod, tmp_path: Path) -> None:
    path = tmp_path / "termination"
    path.touch()
    pod.output("sh", "-c", "echo last words > /dev/termination-log", mounts=[mount(path, "/dev/termination-log")])
    assert path.read_text() == "last words\n"


def test_copy_file(pod: Pod, tmp_path: Path) -> None:
    """As `kubectl cp` does it: a command's output, here 30 MB of it."""
    content = os.urandom(30_000_000)
    (tmp_path / "big").write_bytes(content)
    container = pod.run(mounts=[mount(tmp_path, "/in", readonly=True)])
    container.sh("cp /in/big /copy")
    digest = container.sh("sha256sum /copy").split()[0]
    assert digest == hashlib.sha256(content).hexdigest()
    container.remove()


def test_a_volume_that_is_not_there(pod: Pod, tmp_path: Path) -> None:
    """containerd makes the directory, with runc as with us."""
    container = pod.run(mounts=[mount(tmp_path / "absent", "/data")])
    assert container.sh("ls -A /data") == ""
    container.remove()
