"""PCI slots for hot-plug: 62 behind two PCI bridges, and PCIe root ports, four by default, for devices of the host.

An architecture whose bridges have no hot-plug has all of them in root ports.

Virtio devices are as fast behind a conventional bridge as behind a root port, and 62 slots there do not slow a restore
measurably, while 32 root ports cost 100 ms. A device of the host may need what only PCIe has. The firmware reserves a
bridge's windows before anything is plugged: for a conventional bridge it has to be told how much.

Reference: QEMU's docs/pcie.txt and docs/pcie_pci_bridge.txt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kata.errors import ResourceExhausted
from kata.runtime.hypervisor.base import VmPlan

#: Slots of the root bus for root ports: the default four, then what the VM's own devices leave free.
_ROOT_PORTS = (*range(0x4, 0x8), *range(0x11, 0x1F))
_BRIDGES = range(0x9, 0xB)
#: Slot 0 is reserved for a bridge's own hot-plug controller (SHPC).
_BRIDGE_SLOTS = range(0x1, 0x20)
#: The bridge whose last slots empty disks have.
_EMPTY_DISKS_BEHIND = _BRIDGES[-1]


@dataclass(frozen=True, order=True)
class Slot:
    """A PCI slot for one device.

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
        """The slot's number as QEMU writes it."""
        return f"{self.number:#x}"

    @property
    def path(self) -> str:
        """The PCI path in the guest in Kata's notation: "09/1f"."""
        return f"{self.behind:02x}/{self.number:02x}"


def options(plan: VmPlan) -> Iterator[tuple[str, str]]:
    """The options of QEMU's command line for root ports and bridges."""
    reserve = f",pref64-reserve={plan.mmio_window}" if plan.mmio_window else ""
    for index, address in enumerate(_ROOT_PORTS[: plan.root_ports]):
        yield (
            "-device",
            f"pcie-root-port,id=rp{index},bus=pcie.0,chassis={index + 1},slot={index + 1},addr={address:#x}.0{reserve}",
        )
    for index, address in enumerate(_bridges(plan)):
        yield (
            "-device",
            f"pci-bridge,id=bridge{index},bus=pcie.0,chassis_nr={index + 1},shpc=off,addr={address:#x},"
            "io-reserve=0,mem-reserve=1M,pref64-reserve=1M",
        )


def root_port(index: int) -> Slot:
    """The slot behind root port number `index`, counted from 0."""
    return Slot(_ROOT_PORTS[index], 0)


def empty_disk(plan: VmPlan, index: int) -> Slot:
    """The slot of empty disk number `index`, counted from 0: the last ones."""
    if not plan.architecture.bridges:
        return root_port(plan.root_ports - 1 - index)
    return Slot(_EMPTY_DISKS_BEHIND, _BRIDGE_SLOTS[-1 - index])


def _bridges(plan: VmPlan) -> range:
    return _BRIDGES if plan.architecture.bridges else range(0)


class Slots:
    """The free slots of one VM: those in which it has nothing at boot."""

    def __init__(self, plan: VmPlan) -> None:
        self._plan = plan
        self._free = {
            *(Slot(bridge, number) for bridge in _bridges(plan) for number in _BRIDGE_SLOTS),
            *map(root_port, range(len(plan.devices), plan.root_ports)),
        } - {empty_disk(plan, index) for index in range(len(plan.empty_disks))}

    def take(self, *, express: bool = False) -> Slot:
        """Take the first free slot behind a bridge, or for a PCIe device (`express`) behind a root port.

        Raises:
            ResourceExhausted: all are in use.
        """
        express = express or not self._plan.architecture.bridges
        slot = min((slot for slot in self._free if (slot.behind in _ROOT_PORTS) == express), default=None)
        if slot is None:
            kind = f"{self._plan.root_ports} PCIe slots" if express else f"{len(_BRIDGES) * len(_BRIDGE_SLOTS)} slots"
            raise ResourceExhausted(f"all {kind} for hot-plug are in use")
        self._free.remove(slot)
        return slot

    def give(self, slot: Slot) -> None:
        """Make a slot free again."""
        self._free.add(slot)
