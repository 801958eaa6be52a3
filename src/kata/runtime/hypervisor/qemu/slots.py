"""Where hot-plugged devices go: 62 slots of two PCI bridges, and PCIe root ports, usually four, for real PCIe devices.

Virtio devices do as well behind a conventional bridge as behind a root port of their own, and 62 slots there cost a
restore nothing measurable, where 32 root ports cost it 100 ms. A device of the host's may need what only PCIe has.
The firmware sets a bridge's windows aside before anything is plugged: with a conventional bridge it has to be told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kata.errors import ResourceExhausted
from kata.runtime.hypervisor.base import ROOT_PORTS

#: Slots of the root bus that can be root ports: the usual four, then what the machine's own devices leave.
_ROOT_PORTS = (*range(0x4, 0x8), *range(0x11, 0x1F))
_BRIDGES = range(0x9, 0xB)
#: Slot 0 is where a bridge with a controller for hot-plug of its own would have that.
_BRIDGE_SLOTS = range(0x1, 0x20)


@dataclass(frozen=True, order=True)
class Slot:
    """A place for one device.

    Attributes:
        behind: the slot of the bridge or root port on the root bus.
        number: the slot behind it.
    """

    behind: int
    number: int

    @property
    def bus(self) -> str:
        """QEMU's name of the bus."""
        if self.behind in _BRIDGES:
            return f"bridge{self.behind - _BRIDGES.start}"
        return f"rp{_ROOT_PORTS.index(self.behind)}"

    @property
    def address(self) -> str:
        """On that bus."""
        return f"{self.number:#x}"

    @property
    def path(self) -> str:
        """The guest's PCI path, as Kata writes it: "09/1f"."""
        return f"{self.behind:02x}/{self.number:02x}"


def options(root_ports: int = ROOT_PORTS, mmio_window: int = 0) -> Iterator[tuple[str, str]]:
    """What there has to be on QEMU's command line.

    Args:
        root_ports: how many.
        mmio_window: bytes that the firmware sets aside for 64-bit BARs behind each root port, 0 for its own choice.
    """
    reserve = f",pref64-reserve={mmio_window}" if mmio_window else ""
    for index, address in enumerate(_ROOT_PORTS[:root_ports]):
        yield (
            "-device",
            f"pcie-root-port,id=rp{index},bus=pcie.0,chassis={index + 1},slot={index + 1},addr={address:#x}.0{reserve}",
        )
    for index, address in enumerate(_BRIDGES):
        yield (
            "-device",
            f"pci-bridge,id=bridge{index},bus=pcie.0,chassis_nr={index + 1},shpc=off,addr={address:#x},"
            "io-reserve=0,mem-reserve=1M,pref64-reserve=1M",
        )


def root_port(index: int) -> Slot:
    """The slot behind the first root port, the second, …"""
    return Slot(_ROOT_PORTS[index], 0)


class Slots:
    """Which slots of one machine, which has so many root ports, are free: all but the first `taken` root ports'."""

    def __init__(self, root_ports: int = ROOT_PORTS, taken: int = 0) -> None:
        self._root_ports = root_ports
        self._free = {
            *(Slot(bridge, number) for bridge in _BRIDGES for number in _BRIDGE_SLOTS),
            *map(root_port, range(taken, root_ports)),
        }

    def take(self, *, express: bool = False) -> Slot:
        """The first free slot of a bridge, or for a PCIe device (`express`) the first free root port.

        Raises:
            ResourceExhausted: all are in use.
        """
        slot = min((slot for slot in self._free if (slot.behind in _ROOT_PORTS) == express), default=None)
        if slot is None:
            kind = f"{self._root_ports} PCIe slots" if express else f"{len(_BRIDGES) * len(_BRIDGE_SLOTS)} slots"
            raise ResourceExhausted(f"the virtual machine has {kind} for hot-plug, and all are in use")
        self._free.remove(slot)
        return slot

    def give(self, slot: Slot) -> None:
        self._free.add(slot)
