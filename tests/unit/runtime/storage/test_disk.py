"""The disks of a container, as a function of its spec and of what its paths lead to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kata.errors import FailedPrecondition, InvalidArgument, NotFound
from kata.runtime.storage import direct_volume
from kata.runtime.storage.container_files import GUEST_SHARED, ContainerPlan, plan_container
from kata.runtime.storage.direct_volume import DirectVolume
from kata.runtime.storage.disk import Disk, DiskPlan, HostUpper, Layers, plan_disks
from kata.runtime.storage.disk_mount import GUEST_STORAGE, DiskMount
from kata.runtime.storage.exports import Export, Use
from kata.runtime.storage.host_paths import BlockNode, HostPath, HostView, RootfsMount

POINT = f"{GUEST_STORAGE}/c1-t"
NUMBER = (240, 7)
DISK = "/dev/disk"
IMAGE = "/images/disk.img"
HOST = HostView(
    paths={
        DISK: HostPath((1, 2), 0o60660, block=NUMBER),
        IMAGE: HostPath((1, 3), 0o100600),
    },
    disks={NUMBER: BlockNode(DISK, read_only=False)},
)


def plan(spec: Any, *rootfs: RootfsMount, enabled: bool = True, host: HostView = HOST) -> DiskPlan:
    return plan_disks("c1", spec, rootfs, host, token=lambda: "t", enabled=enabled)


def files_of(mounts: Any, found: DiskPlan, *rootfs: RootfsMount) -> ContainerPlan:
    """What the shared tree has of a container with this plan of disks."""
    return plan_container(
        "c1",
        mounts,
        HOST,
        rootfs=rootfs,
        rootfs_dir="/r",
        name=lambda: "@0",
        disk_root=found.root,
        on_disk=found.mounted,
    )


def with_device(*rules: dict[str, Any], **changes: Any) -> Any:
    device = {"path": "/dev/data", "type": "b", "major": 240, "minor": 7, **changes}
    null = {"path": "/dev/null", "type": "c", "major": 1, "minor": 3}
    return {"linux": {"devices": [null, device], "resources": {"devices": list(rules)}}}


def test_nothing_on_disks_changes_nothing() -> None:
    spec: Any = {"mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}], "linux": {"resources": {}}}
    assert plan(spec, RootfsMount("overlay", "overlay", ("lowerdir=/a",))) == DiskPlan((), spec)
    assert plan({}) == DiskPlan((), {})


def test_a_device_of_the_container() -> None:
    found = plan(with_device({"allow": True, "type": "b", "major": 240, "minor": 7, "access": "rwm"}))
    assert found.disks == (Disk(DISK, read_only=False, container_path="/dev/data"),)
    assert [entry["path"] for entry in found.spec["linux"]["devices"]] == ["/dev/null", "/dev/data"]


def test_a_device_that_may_only_be_read() -> None:
    found = plan(with_device({"allow": True, "type": "b", "major": 240, "minor": 7, "access": "r"}))
    assert found.disks[0].read_only


def test_a_device_that_the_host_does_not_have() -> None:
    with pytest.raises(NotFound, match=r"c1: device /dev/data \(240:7\) does not exist on this host"):
        plan(with_device(), host=HostView())


def test_a_drive_is_no_disk() -> None:
    with pytest.raises(InvalidArgument, match="removable media"):
        plan(with_device(major=11), host=HostView(disks={(11, 7): BlockNode("/dev/sr0", read_only=True)}))


@pytest.mark.parametrize("rule", [{"allow": True, "access": "rwm"}, {"allow": True, "type": "a", "access": "rwm"}])
def test_a_privileged_container_does_not_get_the_hosts_disks(rule: dict[str, Any]) -> None:
    found = plan(with_device({"allow": False, "access": "rwm"}, rule))
    assert found.disks == ()
    assert [entry["path"] for entry in found.spec["linux"]["devices"] if "loop" not in entry["path"]] == ["/dev/null"]
    assert found.skipped == ("device /dev/data: the guest has its own disks",)


def test_a_privileged_container_has_the_guests_loop_devices() -> None:
    spec = with_device({"allow": True, "access": "rwm"})
    spec["linux"]["devices"] += [{"path": "/dev/loop3", "type": "b", "major": 7, "minor": 3, "uid": 5}]
    devices = {entry["path"]: entry for entry in plan(spec).spec["linux"]["devices"] if "loop" in entry["path"]}
    assert set(devices) == {"/dev/loop-control", *(f"/dev/loop{number}" for number in range(8))}
    assert devices["/dev/loop3"]["uid"] == 5
    assert (devices["/dev/loop7"]["type"], devices["/dev/loop7"]["major"], devices["/dev/loop7"]["minor"]) == (
        "b",
        7,
        7,
    )
    mapped = {**spec, "linux": {**spec["linux"], "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}}
    assert [entry["path"] for entry in plan(mapped).spec["linux"]["devices"]] == ["/dev/null"]


def test_denying_everything_is_not_being_privileged() -> None:
    assert plan(with_device({"allow": False, "access": "rwm"})).disks


def test_a_bind_of_a_device_is_a_device() -> None:
    mount = {"destination": "/data", "type": "bind", "source": DISK, "options": ["rbind", "ro"]}
    found = plan({"mounts": [mount]})
    assert found.disks == (Disk(DISK, read_only=True, container_path="/data"),)
    assert found.spec["linux"]["devices"] == [
        {"path": "/data", "type": "b", "major": 240, "minor": 7, "fileMode": 0o660}
    ]
    assert found.spec["linux"]["resources"]["devices"] == [
        {"allow": True, "type": "b", "major": 240, "minor": 7, "access": "r"}
    ]
    files = files_of([mount], found)
    assert (files.mounts, files.storages) == ((), ())


def test_a_mount_of_a_device_is_made_in_the_guest() -> None:
    mount: Any = {"destination": "/data", "type": "ext4", "source": DISK, "options": ["noatime", "ro"]}
    found = plan({"mounts": [mount]})
    assert found.disks == (Disk(DISK, read_only=True, mount=DiskMount(POINT, "ext4", ("noatime", "ro"))),)
    files = files_of([mount], found)
    assert files.mounts == ({**mount, "type": "bind", "source": POINT, "options": ["rbind", "ro"]},)


def test_a_root_on_a_disk() -> None:
    rootfs = RootfsMount("xfs", DISK, ("rw",))
    found = plan({}, rootfs)
    assert found.disks == (Disk(DISK, read_only=False, mount=DiskMount(POINT, "xfs", ("rw", "nouuid"))),)
    files = files_of([], found, rootfs)
    assert (files.guest_rootfs, files.rootfs, files.uses) == (POINT, (), ())


def test_a_root_of_layers_that_is_written_to_a_disk() -> None:
    found = plan_disks("c1", {}, (), HOST, token=lambda: "t", layers=Layers(("/top", "/base"), "/up"))
    assert found.disks == (
        Disk("/top", read_only=True, mount=DiskMount(f"{POINT}-0", "erofs", ("ro",)), layer=True),
        Disk("/base", read_only=True, mount=DiskMount(f"{POINT}-1", "erofs", ("ro",)), layer=True),
        Disk(
            "/up",
            read_only=False,
            mount=DiskMount(f"{POINT}-upper", "ext4", ("noinit_itable",)),
            scratch=True,
            layer=True,
        ),
    )
    (overlay,) = found.storages
    assert (overlay.driver, overlay.point) == ("overlayfs", POINT)
    assert overlay.options == (
        f"lowerdir={POINT}-0:{POINT}-1",
        f"upperdir={POINT}-upper/upper",
        f"workdir={POINT}-upper/work",
    )
    assert overlay.create == (f"{POINT}-upper/upper", f"{POINT}-upper/work")
    files = files_of([], found)
    assert (files.guest_rootfs, files.rootfs, files.uses) == (POINT, (), ())


def test_a_root_of_layers_that_is_written_to_memory() -> None:
    found = plan_disks("c1", {}, (), HOST, token=lambda: "t", layers=Layers(("/base",)))
    assert [disk.source for disk in found.disks] == ["/base"]
    memory, overlay = found.storages
    assert (memory.driver, memory.fstype, memory.point) == ("ephemeral", "tmpfs", f"{POINT}-upper")
    assert overlay.options[1].startswith(f"upperdir={memory.point}/")


def test_a_root_of_layers_that_is_written_on_the_host() -> None:
    layers = Layers(("/base",), HostUpper("/snapshots/7", "fs", "work"))
    found = plan_disks("c1", {}, (), HOST, token=lambda: "t", layers=layers)
    assert [disk.source for disk in found.disks] == ["/base"]
    assert found.uses == (Use(Export("/snapshots/7", "c1-t-upper"), write=True),)
    (overlay,) = found.storages
    shared = f"{GUEST_SHARED}/c1-t-upper"
    assert overlay.options == (f"lowerdir={POINT}-0", f"upperdir={shared}/fs", f"workdir={shared}/work")
    # They are there, with the owner and mode that the engine has given them.
    assert overlay.create == ()


def test_an_image_file_is_a_disk_if_the_mount_says_so() -> None:
    found = plan({}, RootfsMount("ext4", IMAGE, ("loop",)))
    assert found.disks == (Disk(IMAGE, read_only=False, mount=DiskMount(POINT, "ext4")),)
    assert plan({}, RootfsMount("ext4", IMAGE)).disks == ()
    assert plan({}, RootfsMount("bind", IMAGE, ("loop",))).disks == ()
    assert plan({}, RootfsMount("ext4", "/nowhere", ("loop",))).disks == ()


def test_a_disk_that_the_kernel_does_not_write_to_is_read_only() -> None:
    host = replace(HOST, disks={NUMBER: BlockNode(DISK, read_only=True)})
    bind = {"destination": "/data", "type": "bind", "source": DISK}
    mount = {"destination": "/data", "type": "ext4", "source": DISK}
    for spec in (with_device(), {"mounts": [bind]}, {"mounts": [mount]}):
        assert plan(spec, host=host).disks[0].read_only


def test_without_disks() -> None:
    mount = {"destination": "/data", "type": "ext4", "source": DISK}
    found = plan({**with_device(), "mounts": [mount]}, RootfsMount("ext4", DISK), enabled=False)
    assert (found.disks, found.root, dict(found.mounted)) == ((), "", {})
    assert [entry["path"] for entry in found.spec["linux"]["devices"]] == ["/dev/null"]


def test_a_direct_volume_is_mounted_in_the_guest_at_a_place_of_its_own() -> None:
    bind = {"type": "bind", "options": ["rbind", "ro"]}
    sources = ("/volume", "/volume/.")
    spec: Any = {
        "mounts": [{**bind, "destination": f"/{n}", "source": source} for n, source in enumerate(sources)],
    }
    point = direct_volume.guest_point("/volume")
    volume = DirectVolume(IMAGE, DiskMount(point, "xfs", group=7))
    host = replace(HOST, volumes=dict.fromkeys(sources, volume))
    found = plan(spec, host=host)
    disk = Disk(IMAGE, read_only=False, mount=DiskMount(point, "xfs", ("nouuid",), group=7))
    assert found.disks == (disk, disk)
    assert found.mounted == {"/0": point, "/1": point}
    assert set(found.volumes.values()) == {IMAGE}
    assert [mount["options"] for mount in files_of(spec["mounts"], found).mounts] == [["rbind", "ro"]] * 2
    with pytest.raises(FailedPrecondition, match="cannot plug the disk of direct volume /volume"):
        plan(spec, enabled=False, host=host)
