"""What is made of the devices and storages of a request."""

from __future__ import annotations

from typing import Any

import pytest

from kata.agent.devices.request import find_devices, find_storages
from kata.agent.devices.specupdate import GuestDevice
from kata.errors import DeadlineExceeded, InvalidArgument, Unimplemented
from kata.protocols import agent_pb2 as pb

from .sysfs import Tree

NULL = GuestDevice("c", 1, 3)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"type": "usb", "id": "1"}, "unknown type 'usb'"),
        ({"type": "", "id": "1"}, "unknown type ''"),
        ({"type": "nvdimm", "vm_path": "/dev/pmem0"}, "is empty or taken"),
        ({"type": "blk", "id": "/dev/vdb", "container_path": "/dev/a"}, "invalid PCI path"),
        ({"type": "scsi", "id": "0", "container_path": "/dev/a"}, "invalid SCSI address"),
        ({"type": "vfio-pci", "id": "7", "container_path": "/dev/vfio/7"}, "IOMMU group has no devices"),
        ({"type": "vfio-pci-gk", "id": "7", "options": ["0000:3b:00.0=zz"]}, "invalid PCI path"),
    ],
)
async def test_impossible_devices(tree: Tree, fields: dict[str, Any], said: str) -> None:
    tree.node(tree.root / "sys/class", "block", "pmem0")
    with pytest.raises(InvalidArgument, match=said):
        await find_devices([pb.Device(**fields)], tree.finder)


@pytest.mark.parametrize("kind", ["vfio-ap", "blk-ccw"])
async def test_devices_of_another_architecture_are_refused_by_name(tree: Tree, kind: str) -> None:
    with pytest.raises(Unimplemented, match=f"type {kind} exists on s390x only"):
        await find_devices([pb.Device(type=kind, id="1", container_path="/dev/a")], tree.finder)


async def test_what_does_not_appear_is_waited_for_as_long_as_was_said(tree: Tree) -> None:
    with pytest.raises(DeadlineExceeded, match=r"no disk at blk 1f/1f appeared within 0.05 s"):
        await find_devices([pb.Device(type="blk", id="1f/1f", container_path="/dev/a")], tree.finder)


async def test_two_updates_of_one_path(tree: Tree) -> None:
    tree.node(tree.root / "sys/class", "block", "pmem0")
    device = pb.Device(type="nvdimm", vm_path="/dev/pmem0", container_path="/dev/a")
    assert (await find_devices([device], tree.finder)).updates == {"/dev/a": NULL}
    with pytest.raises(InvalidArgument, match="is empty or taken"):
        await find_devices([device, device], tree.finder)


@pytest.mark.parametrize("kind", ["vfio-pci", "vfio"])
async def test_a_group_gets_the_path_that_it_has_here(tree: Tree, kind: str) -> None:
    directory = tree.device(4, 1, group=6)
    tree.driver(directory, "vfio-pci")
    tree.group(6)
    device = pb.Device(type=kind, id="9", container_path="/dev/vfio/9", options=["0000:3b:00.0=04/00"])
    found = await find_devices([device], tree.finder)
    assert found.updates == {"/dev/vfio/9": GuestDevice("c", 1, 3, "/dev/vfio/6")}
    assert found.addresses == {"0000:3b:00.0": "0000:01:00.0"}


@pytest.mark.parametrize("kind", ["vfio-pci-gk", "vfio-gk"])
async def test_what_the_kernel_drives_has_no_place_in_the_spec(tree: Tree, kind: str) -> None:
    tree.device(4, 1)
    device = pb.Device(type=kind, id="9", container_path="/dev/vfio/9", options=["0000:3b:00.0=04/00"])
    found = await find_devices([device], tree.finder)
    assert (found.updates, found.nodes, found.addresses) == ({}, [], {"0000:3b:00.0": "0000:01:00.0"})


async def test_one_device_is_one_device(tree: Tree) -> None:
    tree.device(4, 1)
    options = ["0000:3b:00.0=04/00", "0000:3b:00.1=04/00"]
    with pytest.raises(InvalidArgument, match="do not match one to one"):
        await find_devices([pb.Device(type="vfio-pci-gk", id="9", options=options)], tree.finder)


async def test_other_storages_pass_through(tree: Tree) -> None:
    share = pb.Storage(driver="9p", source="kataShared")
    assert await find_storages([share], tree.finder) == [share]
    with pytest.raises(InvalidArgument):
        await find_storages([share, pb.Storage(driver="blk", source="/dev/vdb")], tree.finder)


async def test_a_storage_on_a_disk_gets_its_node(tree: Tree) -> None:
    node = tree.node(tree.root / "sys/class", "block", "pmem0")
    storage = pb.Storage(driver="nvdimm", source="/dev/pmem0", fstype="ext4")
    assert [found.source for found in await find_storages([storage], tree.finder)] == [str(node)]
    assert storage.source == "/dev/pmem0"
