"""A made-up /sys and /dev."""

from __future__ import annotations

import os
from pathlib import Path

from kata.agent.devices.find import Finder

BUS = "sys/devices/pci0000:00"


class Tree:
    """Builds what the kernel would show.

    Attributes:
        finder: looks there, and notes in `loaded` which modules it wanted.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.loaded: list[str] = []
        self.finder = Finder(0.05, self._load, str(root))
        (root / "dev").mkdir()
        (root / "sys/bus/pci").mkdir(parents=True)
        (root / "sys/bus/pci/drivers_probe").touch()

    async def _load(self, *module: str) -> None:
        self.loaded += module

    def port(self, slot: int, bus: int) -> None:
        """A root port in `slot`, behind it the bus of that number."""
        (self.root / BUS / f"0000:00:{slot:02x}.0/pci_bus/0000:{bus:02x}").mkdir(parents=True)

    def device(self, slot: int, bus: int, *, pci_class: int = 0xFF0000, group: int | None = None) -> Path:
        """A device in slot 0 of `bus`, behind the root port in `slot`, which is made as well."""
        self.port(slot, bus)
        directory = self.root / BUS / f"0000:00:{slot:02x}.0/0000:{bus:02x}:00.0"
        directory.mkdir()
        (directory / "class").write_text(f"{pci_class:#08x}\n")
        (directory / "modalias").write_text("pci:v00001234\n")
        (directory / "driver_override").touch()
        if group is not None:
            (directory / "iommu_group").symlink_to(f"../../../../kernel/iommu_groups/{group}")
        return directory

    def driver(self, directory: Path, name: str) -> None:
        """Bind a device."""
        driver = self.root / "sys/bus/pci/drivers" / name
        driver.mkdir(parents=True, exist_ok=True)
        (driver / "unbind").touch()
        (directory / "driver").symlink_to(driver)

    def node(self, parent: Path, subsystem: str, name: str, number: tuple[int, int] = (1, 3)) -> Path:
        """A node of a device's, below /dev and in sysfs."""
        (parent / subsystem / name).mkdir(parents=True)
        (parent / subsystem / name / "dev").write_text(f"{number[0]}:{number[1]}\n")
        (parent / subsystem / name / "uevent").write_text(
            f"MAJOR={number[0]}\nMINOR={number[1]}\nDEVNAME={name}\nDEVTYPE=disk\n"
        )
        (parent / subsystem / name / "subsystem").symlink_to(f"/sys/class/{subsystem}")
        path = self.root / "dev" / name
        path.parent.mkdir(exist_ok=True)
        os.symlink("/dev/null", path)
        return path

    def group(self, number: int) -> Path:
        """An IOMMU group that VFIO has a node for."""
        (self.root / f"sys/devices/virtual/vfio/{number}").mkdir(parents=True)
        path = self.root / f"dev/vfio/{number}"
        path.parent.mkdir(exist_ok=True)
        os.symlink("/dev/null", path)
        return path
