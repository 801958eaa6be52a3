"""Physical NICs as a pod's interfaces: given to the VM, whose guest drives them.

A NIC is plugged with its IOMMU group, like any device (`kata.runtime.devices.vfio`); but its driver on the host is in
use in the pod's network namespace, so it is unbound here. When the sandbox has ended, the NIC is bound to its driver
again, and is in the host's network namespace then, as with Kata.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kata.errors import FailedPrecondition
from kata.linux.rtnetlink import Link
from kata.runtime.devices.binding import bind_to_vfio, override_of
from kata.runtime.devices.iommu import Iommu
from kata.runtime.devices.vfio import IommuGroups, WantedGroup

_OWNER = "the pod's network"


async def plug_nic(link: Link, iommu: Iommu, groups: IommuGroups, hold: Callable[[str], None]) -> str:
    """Give the VM the NIC of an interface, which vanishes from its namespace.

    Args:
        link: the interface.
        iommu: the host's.
        groups: the VM's.
        hold: records what has to be rebound: "ADDRESS OVERRIDE", for `kata.runtime.devices.binding.rebind`.

    Returns:
        The NIC's PCI path in the guest.

    Raises:
        FailedPrecondition: the host has no IOMMU or no vfio-pci, or the NIC's group has another device.
        NotFound: the NIC's IOMMU group is gone.
        KataError: as `IommuGroups.attach`.
    """
    address = iommu.address_of(link.bus, link.parent)
    group = iommu.group_of(address)
    others = [
        one for one in iommu.devices(group) if one.address != address and not one.is_bridge and not one.is_vfio_bound
    ]
    if others:
        listed = ", ".join(f"{one.address} ({one.driver or 'no driver'})" for one in others)
        raise FailedPrecondition(
            f"interface {link.name} is device {address}, in IOMMU group {group} with {listed}, "
            "which would have to be plugged with it",
            hint="bind those to vfio-pci, or use a NIC with an IOMMU group of its own",
        )
    hold(f"{address} {override_of(address, iommu.root)}".rstrip())
    await asyncio.to_thread(bind_to_vfio, address, iommu.root)
    attached = await groups.attach(_OWNER, [WantedGroup(group, "")])
    return dict(option.split("=", 1) for option in attached[0].options)[address]
