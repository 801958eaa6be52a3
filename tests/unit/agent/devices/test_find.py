"""Looking for devices in a made-up sysfs; that messages of the kernel are heard is tested in a guest."""

from __future__ import annotations

import asyncio

import pytest

from kata.errors import DeadlineExceeded, InvalidArgument

from .sysfs import Tree


async def test_a_pci_device_is_found_behind_its_port(tree: Tree) -> None:
    directory = tree.device(4, 1)
    assert await tree.finder.pci("04/00") == str(directory)
    with pytest.raises(DeadlineExceeded, match=r"no PCI device at 05/00 appeared within 0.05 s"):
        await tree.finder.pci("05/00")
    with pytest.raises(InvalidArgument, match="invalid PCI path"):
        await tree.finder.pci("0000:01:00.0")


async def test_what_appears_during_the_wait_is_found_at_its_end_even_without_a_message(tree: Tree) -> None:
    tree.finder.timeout = 0.5
    looking = asyncio.create_task(tree.finder.pci("04/00"))
    await asyncio.sleep(0.1)
    directory = tree.device(4, 1)
    assert await looking == str(directory)


async def test_a_pci_device_without_its_files_is_not_ready(tree: Tree) -> None:
    """No driver would be loaded for it, and its interface waited for in vain."""
    directory = tree.device(4, 1)
    (directory / "net/eth0").mkdir(parents=True)
    (directory / "modalias").rename(directory / "later")
    tree.finder.timeout = 0.5
    looking = asyncio.create_task(tree.finder.interface("04/00"))
    await asyncio.sleep(0.1)
    (directory / "later").rename(directory / "modalias")
    assert await looking == "eth0"
    assert tree.loaded == ["pci:v00001234"]


async def test_a_virtio_disk(tree: Tree) -> None:
    directory = tree.device(9, 1)
    node = tree.node(directory / "virtio3", "block", "vdb", (254, 16))
    assert await tree.finder.disk("blk", "09/00") == str(node)


async def test_a_disk_without_its_node_is_not_ready(tree: Tree) -> None:
    directory = tree.device(9, 1)
    tree.node(directory / "virtio3", "block", "vdb").unlink()
    with pytest.raises(DeadlineExceeded, match="no disk at blk 09/00"):
        await tree.finder.disk("blk", "09/00")


async def test_a_scsi_disk_is_scanned_for_once_on_each_controller(tree: Tree) -> None:
    scan = tree.root / "sys/class/scsi_host/host7/scan"
    scan.parent.mkdir(parents=True)
    scan.touch()
    node = tree.node(tree.root / "sys/bus/scsi/devices/7:0:1:3", "block", "sdb", (8, 16))
    assert await tree.finder.disk("scsi", "1:3") == str(node)
    assert scan.read_text() == "0 1 3"
    with pytest.raises(DeadlineExceeded):
        await tree.finder.disk("scsi", "0:3")


@pytest.mark.parametrize(("kind", "name"), [("nvdimm", "pmem1"), ("mmioblk", "vdc")])
async def test_disks_told_by_their_names(tree: Tree, kind: str, name: str) -> None:
    with pytest.raises(DeadlineExceeded):
        await tree.finder.disk(kind, f"/dev/{name}")
    node = tree.node(tree.root / "sys/class", "block", name)
    assert await tree.finder.disk(kind, f"/dev/{name}") == str(node)


@pytest.mark.parametrize(
    ("kind", "address"),
    [
        ("blk", "/dev/vdb"), ("blk", ""), ("scsi", "0"), ("scsi", "0:0:0:1"), ("scsi", "../0:1"),
        ("nvdimm", "/dev/vda"), ("mmioblk", "/dev/pmem0"), ("mmioblk", "/dev/../etc/passwd"), ("mmioblk", "/dev/mem"),
    ],
)  # fmt: skip
async def test_addresses_that_cannot_be(tree: Tree, kind: str, address: str) -> None:
    with pytest.raises(InvalidArgument):
        await tree.finder.disk(kind, address)


@pytest.mark.parametrize("inner", ["", "virtio1"])
async def test_a_network_interface(tree: Tree, inner: str) -> None:
    directory = tree.device(5, 2)
    (directory / inner / "net/eth3").mkdir(parents=True)
    assert await tree.finder.interface("05/00") == "eth3"
    assert tree.loaded == ["pci:v00001234"]


async def test_a_driver_that_is_at_work_is_not_loaded(tree: Tree) -> None:
    directory = tree.device(5, 2)
    tree.driver(directory, "e1000e")
    await tree.finder.drive(str(directory))
    assert tree.loaded == []
