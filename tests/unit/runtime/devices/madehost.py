"""A made-up host with an IOMMU."""

from __future__ import annotations

import os
from pathlib import Path

from kata.runtime.devices.iommu import Iommu


class Host:
    """Builds what the kernel of a host would show.

    Attributes:
        iommu: looks there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.iommu = Iommu(str(root))
        (root / "sys/kernel/iommu_groups").mkdir(parents=True)
        (root / "dev/vfio").mkdir(parents=True)

    def device(
        self, group: int, address: str, driver: str = "vfio-pci", pci_class: int = 0x020000, resource: str = ""
    ) -> None:
        """A PCI device in a group."""
        directory = self.root / "sys/bus/pci/devices" / address
        directory.mkdir(parents=True)
        (directory / "class").write_text(f"{pci_class:#08x}\n")
        (directory / "driver_override").write_text("(null)\n")
        (directory / "resource").write_text(resource or "0x0 0x0 0x0\n" * 7)
        if driver:
            (directory / "driver").symlink_to(f"/sys/bus/pci/drivers/{driver}")
        link = self.root / f"sys/kernel/iommu_groups/{group}/devices/{address}"
        link.parent.mkdir(parents=True, exist_ok=True)
        (directory / "iommu_group").symlink_to(link.parent.parent)
        link.symlink_to(directory)

    def node(self, group: int, number: tuple[int, int] = (240, 0)) -> None:
        """The group's character device."""
        os.symlink("/dev/null", self.root / f"dev/vfio/{group}")
        directory = self.root / f"sys/dev/char/{number[0]}:{number[1]}"
        directory.mkdir(parents=True)
        (directory / "uevent").write_text(f"MAJOR={number[0]}\nMINOR={number[1]}\nDEVNAME=vfio/{group}\n")
