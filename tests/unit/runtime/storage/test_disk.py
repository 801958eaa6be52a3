"""Which disks a container needs, as a function of its spec and of what its paths lead to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kata.errors import FailedPrecondition, InvalidArgument, NotFound
from kata.runtime.storage import direct_volume
from kata.runtime.storage.disk import Disk, DiskPlan, find_node, plan_disks
from kata.runtime.storage.disk_mount import GUEST_STORAGE, DiskMount
from kata.runtime.storage.shared_tree import RootfsMount, plan_container

POINT = f"{GUEST_STORAGE}/c1-t"
#: A number that no driver has.
NUMBER = (240, 7)


@pytest.fixture
def node(tmp_path: Path) -> str:
    """A block device node; nothing is behind it."""
    if os.geteuid():
        pytest.skip("needs root to make a device node")
    path = tmp_path / "disk"
    os.mknod(path, 0o060660, os.makedev(*NUMBER))
    path.chmod(0o660)
    return str(path)


def plan(spec: Any, *rootfs: RootfsMount, enabled: bool = True, node: str | None = "/dev/x") -> DiskPlan:
    return plan_disks("c1", spec, rootfs, enabled=enabled, token=lambda: "t", node_of=lambda *_: node)


def with_device(*rules: dict[str, Any], **changes: Any) -> Any:
    device = {"path": "/dev/data", "type": "b", "major": 240, "minor": 7, **changes}
    null = {"path": "/dev/null", "type": "c", "major": 1, "minor": 3}
    return {"linux": {"devices": [null, device], "resources": {"devices": list(rules)}}}


def test_nothing_on_disks_changes_nothing() -> None:
    spec: Any = {"mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}], "linux": {"resources": {}}}
    assert plan(spec, RootfsMount("overlay", "overlay", ("lowerdir=/a",))) == DiskPlan((), spec)
    assert plan({}) == DiskPlan((), {})


def test_a_device_of_the_container(node: str) -> None:
    found = plan(with_device({"allow": True, "type": "b", "major": 240, "minor": 7, "access": "rwm"}), node=node)
    assert found.disks == (Disk(node, read_only=False, container_path="/dev/data"),)
    assert [entry["path"] for entry in found.spec["linux"]["devices"]] == ["/dev/null", "/dev/data"]


def test_a_device_that_may_only_be_read(node: str) -> None:
    found = plan(with_device({"allow": True, "type": "b", "major": 240, "minor": 7, "access": "r"}), node=node)
    assert found.disks[0].read_only


def test_a_device_that_the_host_does_not_have() -> None:
    with pytest.raises(NotFound, match=r"c1: device /dev/data \(240:7\) does not exist on this host"):
        plan(with_device(), node=None)


def test_a_drive_is_no_disk(node: str) -> None:
    with pytest.raises(InvalidArgument, match="removable media"):
        plan(with_device(major=11), node=node)


@pytest.mark.parametrize("rule", [{"allow": True, "access": "rwm"}, {"allow": True, "type": "a", "access": "rwm"}])
def test_a_privileged_container_does_not_get_the_hosts_disks(rule: dict[str, Any], node: str) -> None:
    found = plan(with_device({"allow": False, "access": "rwm"}, rule), node=node)
    assert found.disks == ()
    assert [entry["path"] for entry in found.spec["linux"]["devices"]] == ["/dev/null"]
    assert found.skipped == ("device /dev/data: the guest has its own disks",)


def test_denying_everything_is_not_being_privileged(node: str) -> None:
    assert plan(with_device({"allow": False, "access": "rwm"}), node=node).disks


def test_a_bind_of_a_device_is_a_device(node: str) -> None:
    mount = {"destination": "/data", "type": "bind", "source": node, "options": ["rbind", "ro"]}
    found = plan({"mounts": [mount]})
    assert found.disks == (Disk(node, read_only=True, container_path="/data"),)
    assert found.spec["linux"]["devices"] == [
        {"path": "/data", "type": "b", "major": 240, "minor": 7, "fileMode": 0o660}
    ]
    assert found.spec["linux"]["resources"]["devices"] == [
        {"allow": True, "type": "b", "major": 240, "minor": 7, "access": "r"}
    ]
    files = plan_container("c1", [mount], rootfs=(), rootfs_dir="/r", on_disk=found.mounted)  # type: ignore[list-item]
    assert (files.mounts, files.volumes) == ((), ())


def test_a_mount_of_a_device_is_made_in_the_guest(node: str) -> None:
    mount: Any = {"destination": "/data", "type": "ext4", "source": node, "options": ["noatime", "ro"]}
    found = plan({"mounts": [mount]})
    assert found.disks == (Disk(node, read_only=True, mount=DiskMount(POINT, "ext4", ("noatime", "ro"))),)
    files = plan_container("c1", [mount], rootfs=(), rootfs_dir="/r", on_disk=found.mounted)
    assert files.mounts == ({**mount, "type": "bind", "source": POINT, "options": ["rbind", "ro"]},)


def test_a_root_on_a_disk(node: str) -> None:
    rootfs = RootfsMount("xfs", node, ("rw",))
    found = plan({}, rootfs)
    assert found.disks == (Disk(node, read_only=False, mount=DiskMount(POINT, "xfs", ("rw", "nouuid"))),)
    files = plan_container("c1", [], rootfs=[rootfs], rootfs_dir="/r", disk_root=found.root)
    assert (files.guest_rootfs, files.rootfs, files.rootfs_dir) == (POINT, (), "")


def test_an_image_file_is_a_disk_if_the_mount_says_so(tmp_path: Path) -> None:
    (tmp_path / "image").touch()
    image = str(tmp_path / "image")
    found = plan({}, RootfsMount("ext4", image, ("loop",)))
    assert found.disks == (Disk(image, read_only=False, mount=DiskMount(POINT, "ext4")),)
    assert plan({}, RootfsMount("ext4", image)).disks == ()
    assert plan({}, RootfsMount("bind", image, ("loop",))).disks == ()
    assert plan({}, RootfsMount("ext4", "image", ("loop",))).disks == ()


def test_without_disks(node: str) -> None:
    mount = {"destination": "/data", "type": "ext4", "source": node}
    found = plan({**with_device(), "mounts": [mount]}, RootfsMount("ext4", node), enabled=False)
    assert (found.disks, found.root, dict(found.mounted)) == ((), "", {})
    assert [entry["path"] for entry in found.spec["linux"]["devices"]] == ["/dev/null"]


def test_the_node_of_a_number() -> None:
    assert find_node(*NUMBER) is None
    for entry in Path("/sys/dev/block").iterdir():
        major, minor = map(int, entry.name.split(":"))
        assert find_node(major, minor) == f"/dev/{(entry / 'uevent').read_text().partition('DEVNAME=')[2].split()[0]}"


def test_a_direct_volume_is_mounted_in_the_guest_at_a_place_of_its_own(tmp_path: Path) -> None:
    record = {"volume-type": "block", "device": str(tmp_path / "image"), "fstype": "xfs", "metadata": {"fsGroup": "7"}}
    direct_volume.add("/volume", json.dumps(record), str(tmp_path / "records"))
    bind = {"type": "bind", "source": "/volume", "options": ["rbind", "ro"]}
    spec: Any = {"mounts": [{**bind, "destination": "/a"}, {**bind, "destination": "/b", "source": "/volume/."}]}
    found = plan_disks("c1", spec, (), volumes=str(tmp_path / "records"))
    point = direct_volume.guest_point("/volume")
    disk = Disk(record["device"], read_only=False, mount=DiskMount(point, "xfs", ("nouuid",), group=7))  # type: ignore[arg-type]
    assert found.disks == (disk, disk)
    assert found.mounted == {"/a": point, "/b": point}
    assert set(found.volumes.values()) == {record["device"]}
    files = plan_container("c1", spec["mounts"], rootfs=(), rootfs_dir="/r", on_disk=found.mounted)
    assert [mount["options"] for mount in files.mounts] == [["rbind", "ro"]] * 2
    with pytest.raises(FailedPrecondition, match="/volume is a direct volume"):
        plan_disks("c1", spec, (), enabled=False, volumes=str(tmp_path / "records"))
