"""Kubernetes' volumes by their paths, and what becomes of each."""

from __future__ import annotations

import itertools
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kata.errors import InvalidArgument
from kata.linux import mount as linux
from kata.linux import mountinfo
from kata.runtime.storage.container_files import GUEST_SHARED, ContainerPlan, plan_container, plan_sandbox_mounts
from kata.runtime.storage.exports import Export
from kata.runtime.storage.host_paths import HostPath, HostView, look_at_paths
from kata.runtime.storage.kubernetes_volumes import EmptyDir

POD = "var/lib/kubelet/pods/0000/volumes"


def volume(root: Path, plugin: str, name: str = "data", files: int = 0) -> Path:
    path = root / POD / f"kubernetes.io~{plugin}" / name
    path.mkdir(parents=True)
    for number in range(files):
        (path / str(number)).touch()
    return path


def make_plan(source: Path, destination: str = "/data", **options: Any) -> ContainerPlan:
    mount: Any = {
        "destination": destination,
        "type": "bind",
        "source": str(source),
        "options": ["rbind", "rprivate", "ro"],
    }
    options.setdefault("name", map("@{}".format, itertools.count()).__next__)
    options.setdefault("host", look_at_paths({"mounts": [mount]}))
    return plan_container("box", [mount], rootfs=(), rootfs_dir="/rootfs", **options)


def test_an_empty_dir_on_disk_is_shared(tmp_path: Path) -> None:
    planned = make_plan(volume(tmp_path, "empty-dir"))
    assert len(planned.uses) == 2, "with the root"
    assert planned.storages == ()


def test_or_the_guests_own_beside_the_pods_root(tmp_path: Path) -> None:
    source = volume(tmp_path, "empty-dir")
    source.chmod(0o2777)
    planned = make_plan(source, guest_empty_dir=True, pod_root=f"{GUEST_SHARED}/pod/rootfs")
    (storage,) = planned.storages
    assert (storage.driver, storage.shared) == ("local", True)
    assert storage.point == f"{GUEST_SHARED}/pod/rootfs/local/data"
    assert storage.options[0] == "mode=2777"
    assert len(planned.uses) == 1, "the root"
    assert planned.mounts[0]["source"] == storage.point
    assert planned.mounts[0]["options"] == ["rbind", "rprivate", "ro"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_an_empty_dir_in_memory_is_the_guests_memory(tmp_path: Path) -> None:
    source = volume(tmp_path, "empty-dir", "my cache")
    linux.mount("tmpfs", str(source), "tmpfs", 0, "size=1m,mode=0777")
    try:
        os.chown(source, -1, 4711)
        assert mountinfo.mounted_at(str(source)) is not None
        (storage,) = make_plan(source).storages
    finally:
        linux.umount(str(source))
    assert storage.driver == "ephemeral"
    assert storage.fstype == "tmpfs"
    assert storage.point == "/run/kata-containers/sandbox/ephemeral/my cache"
    assert storage.options == ("size=1048576", "mode=0777", "fsgid=4711")
    assert storage.shared, "it outlives a container that is restarted"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_an_empty_dir_in_memory_may_be_the_shared_memory(tmp_path: Path) -> None:
    source = volume(tmp_path, "empty-dir", "shm")
    linux.mount("tmpfs", str(source), "tmpfs", 0, "size=256m,mode=1777")
    try:
        planned = make_plan(source, "/dev/shm")
    finally:
        linux.umount(str(source))
    assert f"size={256 << 20}" in planned.storages[0].options
    assert planned.mounts[0]["source"] == "/run/kata-containers/sandbox/ephemeral/shm"


def test_huge_pages_need_a_limit() -> None:
    source = Path("/", POD, "kubernetes.io~empty-dir/data")
    hugetlbfs = HostPath((1, 2), 0o40777, empty_dir=EmptyDir("hugetlbfs", page_size="2M"))
    plan = partial(make_plan, source, host=HostView({str(source): hugetlbfs}))
    (storage,) = plan(hugepages={"1GB": 5 << 30, "2MB": 4 << 20}).storages
    assert (storage.driver, storage.fstype) == ("ephemeral", "hugetlbfs")
    assert storage.options[:2] == ("pagesize=2M", f"size={4 << 20}")
    with pytest.raises(InvalidArgument, match="needs huge pages of 2M") as caught:
        plan(hugepages={"1GB": 5 << 30})
    assert "hugepages-2Mi" in str(caught.value.hint)


@pytest.mark.parametrize("plugin", ["configmap", "secret", "projected", "downward-api"])
@pytest.mark.parametrize(("files", "copied"), [(0, True), (8, True), (9, False)])
def test_what_kubelet_updates_is_copied_in_the_guest_if_it_is_small(
    tmp_path: Path, plugin: str, files: int, copied: bool
) -> None:
    planned = make_plan(volume(tmp_path, plugin, files=files))
    assert [use.path for use in planned.uses] == ["@0", "@1"]
    assert [storage.driver for storage in planned.storages] == ["watchable-bind"] * copied
    guest = "/run/kata-containers/sandbox/watchable/@1" if copied else f"{GUEST_SHARED}/@1"
    assert planned.mounts[0]["source"] == guest


def test_a_part_of_a_volume_is_a_plain_share(tmp_path: Path) -> None:
    """subPath: kubelet binds the part to a directory of its own, and never updates it."""
    part = tmp_path / "var/lib/kubelet/pods/0000/volume-subpaths/config/box/0"
    part.mkdir(parents=True)
    planned = make_plan(part)
    assert len(planned.uses) == 2, "with the root"
    assert planned.storages == ()
    assert make_plan(volume(tmp_path, "configmap", files=1) / "0").storages == (), "and so is a single file"


def test_sandbox_mounts() -> None:
    plain, read_write, read_only = plan_sandbox_mounts(["/etc/a", "/etc/b:rw", "/srv/c:d:ro"], HostView())
    assert (plain.export, plain.write) == (Export("/etc/a", "sandbox-mounts/a"), False)
    assert (read_write.export.source, read_write.write) == ("/etc/b", True)
    assert (read_only.export, read_only.write) == (Export("/srv/c:d", "sandbox-mounts/c:d"), False)


@pytest.mark.parametrize("paths", [["/"], ["/a/x", "/b/x:rw"]])
def test_sandbox_mounts_without_names_of_their_own(paths: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="empty or already in use"):
        plan_sandbox_mounts(paths, HostView())
