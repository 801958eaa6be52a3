"""IOMMU groups of a made-up host."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kata.errors import FailedPrecondition, NotFound
from kata.runtime.devices.iommu import Iommu

from .madehost import Host

NIC, AUDIO, BRIDGE = "0000:3b:00.0", "0000:3b:00.1", "0000:00:1c.0"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_group_is_its_devices_without_bridges(host: Host) -> None:
    host.device(7, AUDIO)
    host.device(7, NIC)
    host.device(7, BRIDGE, "pcieport", 0x060400)
    host.node(7)
    assert [device.address for device in host.iommu.assignable(7)] == [NIC, AUDIO]


def test_a_group_is_known_by_the_number_of_its_node(host: Host) -> None:
    host.node(7, (240, 3))
    assert host.iommu.group_of_node(240, 3) == 7
    assert host.iommu.group_of_node(240, 4) is None
    (host.root / "sys/dev/char/10:196").mkdir()
    (host.root / "sys/dev/char/10:196/uevent").write_text("DEVNAME=vfio/vfio\n")
    assert host.iommu.group_of_node(10, 196) is None


@pytest.mark.parametrize(("driver", "shown"), [("nvme", "nvme"), ("", "no driver")])
def test_a_group_that_is_not_wholly_bound(host: Host, driver: str, shown: str) -> None:
    host.device(7, NIC)
    host.device(7, AUDIO, driver)
    host.node(7)
    with pytest.raises(FailedPrecondition) as caught:
        host.iommu.assignable(7)
    assert str(caught.value) == (
        f"IOMMU group 7 with {NIC} (vfio-pci), {AUDIO} ({shown}) is not completely bound to vfio-pci"
    )
    assert AUDIO in str(caught.value.hint)
    assert NIC not in str(caught.value.hint)


def test_a_group_in_use(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.device(7, NIC)
    host.node(7)

    def busy(path: str, flags: int) -> int:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)

    monkeypatch.setattr("kata.runtime.devices.iommu.os.open", busy)
    with pytest.raises(FailedPrecondition, match=rf"group 7 with {NIC} \(vfio-pci\) is in use"):
        host.iommu.assignable(7)


def test_what_is_missing(host: Host, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="no active IOMMU"):
        Iommu(str(tmp_path / "nothing")).assignable(7)
    with pytest.raises(FailedPrecondition, match="no active IOMMU"):
        host.iommu.assignable(7)
    host.device(7, NIC)
    with pytest.raises(NotFound, match="no IOMMU group 8"):
        host.iommu.assignable(8)
    with pytest.raises(FailedPrecondition, match="no node /dev/vfio/7"):
        host.iommu.assignable(7)


def test_only_bridges_and_other_buses(host: Host) -> None:
    host.device(1, BRIDGE, "pcieport", 0x060400)
    with pytest.raises(FailedPrecondition, match="only bridges"):
        host.iommu.assignable(1)
    (host.root / "sys/kernel/iommu_groups/2/devices/platform-thing").mkdir(parents=True)
    with pytest.raises(FailedPrecondition, match="platform-thing in IOMMU group 2 is not a PCI device"):
        host.iommu.assignable(2)


def test_only_prefetchable_64_bit_bars_need_a_window(host: Host) -> None:
    lines = (
        "0x00000000f0000000 0x00000000f0ffffff 0x0000000000040200",
        "0x0000380000000000 0x00003803ffffffff 0x000000000014220c",
        "0x0000000000000000 0x0000000000000000 0x0000000000000000",
        "0x0000380400000000 0x0000380401ffffff 0x000000000014220c",
        "0x00000000f1000000 0x00000000f1ffffff 0x0000000000140204",
    )
    host.device(7, NIC, resource="\n".join(lines) + "\n")
    assert [device.window for device in host.iommu.devices(7)] == [(16 << 30) + (32 << 20)]
