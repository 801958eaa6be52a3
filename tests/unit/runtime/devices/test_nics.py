"""Physical NICs given to a VM, on a made-up host: what is refused before anything is touched, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from kata.errors import FailedPrecondition
from kata.linux.rtnetlink import Link
from kata.runtime.devices import binding
from kata.runtime.devices.nics import plug_nic
from kata.runtime.devices.vfio import IommuGroups

from .madehost import Host

CARD = "0000:03:00.0"


def link(bus: str = "pci", parent: str = CARD) -> Link:
    return Link(4, "ens3", "", "02:00:00:00:00:04", 1500, 1, bus=bus, parent=parent)


class KernelHost(Host):
    """A host whose files are read by something like its kernel: who writes to them is answered by `driver`."""

    def written(self, address: str = CARD) -> dict[str, str]:
        pci = self.root / "sys/bus/pci"
        device = pci / "devices" / address
        files = {"override": device / "driver_override", "probe": pci / "drivers_probe"}
        return {name: path.read_text().strip() if path.exists() else "" for name, path in files.items()}


@pytest.fixture
def host(tmp_path: Path) -> KernelHost:
    return KernelHost(tmp_path)


async def refused(host: Host, wanted: Link, match: str) -> None:
    held: list[str] = []
    with pytest.raises(FailedPrecondition, match=match):
        await plug_nic(wanted, host.iommu, cast(IommuGroups, None), held.append)
    assert held == []


async def test_a_host_without_an_iommu(host: KernelHost) -> None:
    host.device(5, CARD, "e1000e")
    (host.root / "sys/bus/pci/devices" / CARD / "iommu_group").unlink()
    await refused(host, link(), f"device {CARD} is in no IOMMU group")


async def test_what_is_in_the_cards_group_is_named(host: KernelHost) -> None:
    host.device(5, CARD, "e1000e")
    host.device(5, "0000:03:00.1", "snd_hda_intel", pci_class=0x040300)
    host.device(5, "0000:03:00.2", "", pci_class=0x060400)
    host.device(5, "0000:03:00.3", "vfio-pci")
    await refused(
        host, link(), r"ens3 is device 0000:03:00.0, in IOMMU group 5 with 0000:03:00.1 \(snd_hda_intel\), which"
    )


async def test_a_virtio_card_is_the_device_that_it_is_in(host: KernelHost) -> None:
    host.device(5, CARD, "virtio-pci")
    (host.root / "sys/bus/pci/devices" / CARD / "virtio2").mkdir()
    virtio = host.root / "sys/bus/virtio/devices"
    virtio.mkdir(parents=True)
    (virtio / "virtio2").symlink_to(host.root / "sys/bus/pci/devices" / CARD / "virtio2")
    assert host.iommu.address_of("virtio", "virtio2") == CARD
    await refused(host, link("virtio", "virtio9"), "device devices on bus virtio is not a PCI device")


async def test_a_kernel_without_vfio_pci_says_so_and_the_card_is_on_the_ledger(host: KernelHost) -> None:
    host.device(5, CARD, "")
    held: list[str] = []
    with pytest.raises(FailedPrecondition, match="to vfio-pci: its driver is now none") as caught:
        await plug_nic(link(), host.iommu, cast(IommuGroups, None), held.append)
    assert caught.value.hint == "modprobe vfio-pci"
    assert held == [CARD]
    assert host.written() == {"override": "vfio-pci", "probe": CARD}


def test_the_way_back_is_the_drivers_that_was_chosen_before(host: KernelHost) -> None:
    host.device(5, CARD, "")
    root = str(host.root)
    binding.rebind(CARD, "igb_uio", root)
    assert host.written() == {"override": "igb_uio", "probe": CARD}
    assert binding.override_of(CARD, root) == "igb_uio"
    binding.rebind(CARD, "", root)
    assert host.written() == {"override": "", "probe": CARD}
    binding.rebind("0000:04:00.0", "", root)  # it was taken out meanwhile
