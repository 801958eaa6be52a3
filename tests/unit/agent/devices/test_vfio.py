"""Assigned devices in a made-up sysfs; drivers that do bind are tested in a guest and by `make test-nested`."""

from __future__ import annotations

import pytest

from kata.agent.devices import vfio
from kata.agent.devices.specupdate import GuestNode
from kata.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument

from .sysfs import Tree


def test_options() -> None:
    assert vfio.parse_options(["0000:3b:00.0=04/00", "0000:3b:00.1=05/00.1"]) == {
        "0000:3b:00.0": "04/00",
        "0000:3b:00.1": "05/00.1",
    }


@pytest.mark.parametrize(
    "options",
    [
        [], ["0000:3b:00.0"], ["0000:3b:00.0="], ["3b:00.0=04/00"], ["0000:3b:00.0=../.."], ["=04/00"],
        ["0000:3b:00.0=04/00", "0000:3b:00.0=05/00"],
    ],
)  # fmt: skip
def test_options_with_rubbish(options: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        vfio.parse_options(options)


async def test_the_kernels_driver_makes_nodes(tree: Tree) -> None:
    directory = tree.device(4, 1, pci_class=0x010802)
    tree.node(directory / "nvme/nvme0", "block", "nvme0n1", (259, 0))
    tree.node(directory, "nvme", "nvme0n", (245, 0))
    assert await vfio.drive_by_kernel(tree.finder, str(directory)) == [
        GuestNode("/dev/nvme0n", "c", 245, 0),
        GuestNode("/dev/nvme0n1", "b", 259, 0),
    ]
    assert tree.loaded == ["pci:v00001234"]


async def test_a_device_that_this_guest_has_no_driver_for_has_no_nodes(tree: Tree) -> None:
    directory = tree.device(4, 1, pci_class=0x020000)
    assert await vfio.drive_by_kernel(tree.finder, str(directory)) == []


async def test_a_device_is_bound_and_its_group_is_this_guests(tree: Tree) -> None:
    directory = tree.device(4, 1, group=6)
    tree.driver(directory, "vfio-pci")
    node = tree.group(6)
    assert await vfio.give_to_container(tree.finder, [str(directory)]) == str(node)
    assert (directory / "driver_override").read_text() == "vfio-pci"
    assert tree.loaded == ["vfio-pci", "vfio_iommu_type1"]


async def test_another_driver_lets_go_first(tree: Tree) -> None:
    directory = tree.device(4, 1, group=6)
    tree.driver(directory, "nvme")
    # Files do not unbind anything, so it ends with what would be said of a driver that stays.
    with pytest.raises(FailedPrecondition, match=r"vfio-pci did not bind to 0000:01:00.0"):
        await vfio.give_to_container(tree.finder, [str(directory)])
    assert (tree.root / "sys/bus/pci/drivers/nvme/unbind").read_text() == "0000:01:00.0"


async def test_without_an_iommu(tree: Tree) -> None:
    directory = tree.device(4, 1)
    tree.driver(directory, "vfio-pci")
    with pytest.raises(FailedPrecondition, match=r"0000:01:00.0 is in no IOMMU group") as caught:
        await vfio.give_to_container(tree.finder, [str(directory)])
    assert "enable_iommu" in str(caught.value.hint)


async def test_one_group_of_the_host_is_one_group_here(tree: Tree) -> None:
    directories = [tree.device(4, 1, group=6), tree.device(5, 2, group=7)]
    for directory in directories:
        tree.driver(directory, "vfio-pci")
    with pytest.raises(FailedPrecondition, match=r"several groups of the guest: 0000:01:00.0 in 6, 0000:02:00.0 in 7"):
        await vfio.give_to_container(tree.finder, [str(directory) for directory in directories])


async def test_a_group_without_a_node(tree: Tree) -> None:
    directory = tree.device(4, 1, group=6)
    tree.driver(directory, "vfio-pci")
    with pytest.raises(DeadlineExceeded, match="no node of IOMMU group 6"):
        await vfio.give_to_container(tree.finder, [str(directory)])
