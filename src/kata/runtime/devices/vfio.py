"""VFIO devices of containers: which groups a spec wants, what the guest is told, and plugging them.

The spec has a group as a character device, /dev/vfio/<group>. What the guest gets depends on `vfio_mode`:

    guest-kernel    the guest's driver takes the devices; the spec's nodes of VFIO mean nothing there and go
    vfio            the container drives the devices; the agent gives the node the path and number that it has there

Devices are plugged into PCIe root ports of the running machine, whichever mode: so a sandbox with a device goes on
from a template like any other. With `cold_plug_vfio` those of the first container are there when the machine is booted,
for devices that do not bear to come later, and stay as long as it does. All that a sandbox holds of the host are files
that QEMU has open: they close when it ends, whatever ended it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kata.errors import FailedPrecondition, KataError
from kata.oci.device_rules import allows_everything
from kata.oci.spec import Spec
from kata.runtime.config.settings import Config
from kata.runtime.devices.iommu import HostDevice, Iommu
from kata.runtime.hypervisor.base import VirtualMachine
from kata.runtime.hypervisor.devices import VfioDevice

log = logging.getLogger(__name__)

GUEST_KERNEL = "guest-kernel"
_DIRECTORY = "/dev/vfio/"
_CONTROL = "/dev/vfio/vfio"
#: Kata's names for the agent's two ways.
_TYPES = {GUEST_KERNEL: "vfio-pci-gk", "vfio": "vfio-pci"}
#: What the firmware (SeaBIOS) sets aside behind a port of its own accord.
_USUAL_WINDOW = 2 << 20
#: Seconds the guest has to let go of a device.
_UNPLUG_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class WantedGroup:
    """A group that a container's spec names.

    Attributes:
        path: of the device in the container's spec.
    """

    group: int
    path: str


@dataclass(frozen=True)
class VfioPlan:
    """What of a container is VFIO's.

    Attributes:
        groups: to be given to the guest.
        spec: for the guest: without nodes of VFIO if the guest's kernel drives the devices.
        skipped: devices left out, with the reason, for the log.
    """

    groups: tuple[WantedGroup, ...]
    spec: Spec
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttachedGroup:
    """A group that the guest has, as the agent is told of it.

    Attributes:
        kind: the agent's type of device.
        options: where the guest finds each device: "ADDRESS=PCI-PATH".
    """

    wanted: WantedGroup
    kind: str
    options: tuple[str, ...]


def groups_of(spec: Spec, iommu: Iommu) -> dict[tuple[int, int], int]:
    """A look at the host: the IOMMU groups whose device nodes a spec names, by major and minor number."""
    numbers = {number for device in _devices(spec) if (number := _number(device))}
    return {number: group for number in numbers if (group := iommu.group_of_node(*number)) is not None}


def plan_vfio(spec: Spec, mode: str, groups: Mapping[tuple[int, int], int]) -> VfioPlan:
    """Plan the VFIO devices of a container.

    Args:
        spec: the container's, which is not changed.
        mode: the setting `vfio_mode`.
        groups: IOMMU groups by the number of their device node, from `groups_of`.
    """
    linux: Mapping[str, Any] = spec.get("linux") or {}
    devices = _devices(spec)
    rules: Sequence[Mapping[str, Any]] = (linux.get("resources") or {}).get("devices") or ()
    # A privileged container is given every device that the host has; it gets the guest's, and none of these.
    privileged = allows_everything(rules)
    kept: list[Mapping[str, Any]] = []
    wanted: list[WantedGroup] = []
    skipped: list[str] = []
    for device in devices:
        path = str(device.get("path"))
        group = _group(device, groups)
        if group is None and path != _CONTROL:
            kept.append(device)
        elif privileged:
            skipped.append(f"device {path}: a privileged container gets no device of the host")
        else:
            if group is not None:
                wanted.append(WantedGroup(group, path))
            if mode != GUEST_KERNEL:
                kept.append(device)
    if len(kept) == len(devices) and not wanted:
        return VfioPlan((), spec)
    edited: Any = {**spec, "linux": {**linux, "devices": kept}}
    return VfioPlan(tuple(wanted), edited, tuple(skipped))


def _devices(spec: Spec) -> Sequence[Mapping[str, Any]]:
    linux: Mapping[str, Any] = spec.get("linux") or {}
    return linux.get("devices") or ()


def _number(device: Mapping[str, Any]) -> tuple[int, int] | None:
    """Major and minor number of a character device."""
    if device.get("type") not in ("c", "u"):
        return None
    return int(device.get("major", -1)), int(device.get("minor", -1))


def _group(device: Mapping[str, Any], groups: Mapping[tuple[int, int], int]) -> int | None:
    """The IOMMU group that a device of a spec is, by its number: its path is the container's, and may be any."""
    number = _number(device)
    if number is None:
        return None
    if number in groups:
        return groups[number]
    name = str(device.get("path")).removeprefix(_DIRECTORY)
    if str(device.get("path")).startswith(_DIRECTORY) and name.isdecimal():
        # Of this path, but not of this host: the error that follows says what is missing.
        return int(name)
    return None


@dataclass(frozen=True)
class Ports:
    """What a spec's devices need of a machine's root ports.

    Attributes:
        count: how many.
        window: bytes of address space that each must have for their BARs; 0 if any port does.
    """

    count: int = 0
    window: int = 0


def ports(spec: Spec, iommu: Iommu) -> Ports:
    """The root ports for a spec's VFIO devices.

    Known when the machine is planned; a group that is not there or not ready is the container's to complain about.
    """
    count = largest = 0
    for wanted in plan_vfio(spec, GUEST_KERNEL, groups_of(spec, iommu)).groups:
        try:
            devices = [device for device in iommu.devices(wanted.group) if not device.is_bridge]
        except KataError:
            continue
        count += len(devices)
        largest = max([largest, *(device.window for device in devices)])
    return Ports(count, 0 if largest <= _USUAL_WINDOW else 1 << (largest - 1).bit_length())


def cold_devices(spec: Spec, config: Config, iommu: Iommu) -> dict[int, list[VfioDevice]]:
    """What a machine is to be booted with, by group; nothing unless `cold_plug_vfio` wants that.

    Raises:
        NotFound, FailedPrecondition: as `Iommu.assignable`.
    """
    if config.hypervisor.cold_plug_vfio == "no-port":
        return {}
    wanted = plan_vfio(spec, config.runtime.vfio_mode, groups_of(spec, iommu)).groups
    return {one.group: [_device(device) for device in iommu.assignable(one.group)] for one in wanted}


def _device(device: HostDevice) -> VfioDevice:
    return VfioDevice(id=f"vfio-{device.address.replace(':', '-')}", host=device.address)


@dataclass
class _Plugged:
    """A group that the machine has."""

    options: tuple[str, ...] = ()
    cold: bool = False
    devices: list[str] = field(default_factory=list)
    users: set[str] = field(default_factory=set)


class IommuGroups:
    """The IOMMU groups that one sandbox's machine has.

    Args:
        config: says what the container gets of a group, and whether any is plugged at all.
        cold: what the machine was booted with, as of `cold_devices`.
    """

    def __init__(
        self, vm: VirtualMachine, config: Config, iommu: Iommu, cold: Mapping[int, Sequence[VfioDevice]]
    ) -> None:
        self._vm = vm
        self._mode = config.runtime.vfio_mode
        self._ports = config.hypervisor.hot_plug_vfio != "no-port"
        self._iommu = iommu
        self._plugged = {
            group: _Plugged(tuple(f"{device.host}={vm.place(device.id)}" for device in devices), cold=True)
            for group, devices in cold.items()
        }
        # Who comes while a group is being plugged finds it plugged.
        self._lock = asyncio.Lock()

    async def attach(self, owner: str, wanted: Sequence[WantedGroup]) -> list[AttachedGroup]:
        """Give the guest the groups of the container `owner`; all of them or none.

        Raises:
            NotFound, FailedPrecondition: as `Iommu.assignable`.
            KataError: as `VirtualMachine.plug`.
        """
        attached = []
        async with self._lock:
            try:
                for group in wanted:
                    options = await self._attach(owner, group.group)
                    attached.append(AttachedGroup(group, _TYPES[self._mode], options))
            except BaseException:
                await asyncio.shield(asyncio.ensure_future(self._detach(owner)))
                raise
        return attached

    async def _attach(self, owner: str, group: int) -> tuple[str, ...]:
        there = self._plugged.get(group)
        if there is None:
            if not self._ports:
                raise FailedPrecondition(
                    f"IOMMU group {group} is not given to the virtual machine: devices of the host are switched off",
                    hint="set hot_plug_vfio to root-port in the configuration",
                )
            devices = self._iommu.assignable(group)
            there = self._plugged[group] = _Plugged(users={owner})
            there.options = tuple([await self._plug(there, device) for device in devices])
        elif self._mode != GUEST_KERNEL and not there.users <= {owner}:
            raise FailedPrecondition(f"IOMMU group {group} is another container's of this sandbox")
        there.users.add(owner)
        return there.options

    async def _plug(self, plugged: _Plugged, device: HostDevice) -> str:
        wanted = _device(device)
        path = await self._vm.plug(wanted)
        plugged.devices.append(wanted.id)
        log.info("device %s of the host is at %s in the guest", device.address, path)
        return f"{device.address}={path}"

    async def detach(self, owner: str) -> None:
        """Take back what no other container uses. A guest that keeps a device is logged; its machine's end frees it."""
        async with self._lock:
            await self._detach(owner)

    async def _detach(self, owner: str) -> None:
        for group, plugged in list(self._plugged.items()):
            plugged.users.discard(owner)
            if plugged.users or plugged.cold:
                continue
            del self._plugged[group]
            for name in plugged.devices:
                try:
                    await self._vm.unplug(name, _UNPLUG_TIMEOUT_S)
                except KataError as error:
                    log.warning("IOMMU group %d of container %s: %s", group, owner, error)
