"""Network cards of the host as a pod's interfaces: lent to the machine, whose kernel drives them.

A card is given with its IOMMU group, as any device is (`kata.runtime.devices.vfio`); but it is in the pod's network
namespace at work, so it is taken from its driver here. When the sandbox has ended, the driver gets it back, and with
that it is in the host's own network namespace, as Kata leaves it, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kata.errors import FailedPrecondition
from kata.linux.rtnetlink import Link
from kata.runtime.devices.binding import lend, override_of
from kata.runtime.devices.iommu import Iommu
from kata.runtime.devices.vfio import IommuGroups, WantedGroup

_OWNER = "the pod's network"


async def lend_nic(link: Link, iommu: Iommu, groups: IommuGroups, hold: Callable[[str], None]) -> str:
    """Give the machine the card that an interface is of; the interface is gone from its namespace then.

    Args:
        hold: writes down what has to be given back: "ADDRESS OVERRIDE", for `kata.runtime.devices.binding.give_back`.

    Returns:
        The card's PCI path in the guest.

    Raises:
        FailedPrecondition, NotFound: the host has no IOMMU, something else is in the card's group, no vfio-pci.
        KataError: as `IommuGroups.attach`.
    """
    address = iommu.address_of(link.bus, link.parent)
    group = iommu.group_of(address)
    others = [one for one in iommu.devices(group) if one.address != address and not one.is_bridge and not one.lent]
    if others:
        listed = ", ".join(f"{one.address} ({one.driver or 'no driver'})" for one in others)
        raise FailedPrecondition(
            f"interface {link.name} is device {address}, in IOMMU group {group} with {listed}, "
            "which would have to be given with it",
            hint="bind those to vfio-pci, or use a card that has a group of its own",
        )
    hold(f"{address} {override_of(address, iommu.root)}".rstrip())
    await asyncio.to_thread(lend, address, iommu.root)
    attached = await groups.attach(_OWNER, [WantedGroup(group, "")])
    return dict(option.split("=", 1) for option in attached[0].options)[address]
