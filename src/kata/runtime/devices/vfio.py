"""VFIO devices of containers: the IOMMU groups that a spec names, what the guest is told, and hot-plug.

The spec has a group as a character device, /dev/vfio/<group>. What the container gets depends on `vfio_mode`:

    guest-kernel    a driver of the guest binds the devices; VFIO's device nodes are removed from the spec
    vfio            the container drives the devices; the agent gives the node its path and number in the guest

Devices are hot-plugged into PCIe root ports in either mode, so that a sandbox with devices is restored from a template,
too. With `cold_plug_vfio`, the VM boots with the devices of the first container, and keeps them until it ends. All that
a sandbox holds of the host are files that the VMM has open: they are closed when it ends, however it ends.

Reference: the kernel's Documentation/driver-api/vfio.rst.
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
#: The agent's device types (Kata's).
_TYPES = {GUEST_KERNEL: "vfio-pci-gk", "vfio": "vfio-pci"}
#: Bytes of 64-bit MMIO space that the firmware (SeaBIOS) reserves behind a port by default.
_DEFAULT_WINDOW = 2 << 20
#: Seconds for the guest to release a device.
_UNPLUG_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class WantedGroup:
    """An IOMMU group that a container's spec names.

    Attributes:
        group: its number on the host.
        path: of its device node in the container's spec.
    """

    group: int
    path: str


@dataclass(frozen=True)
class VfioPlan:
    """The VFIO devices of a container.

    Attributes:
        groups: those that the guest gets.
        spec: for the guest: without VFIO's device nodes if the guest's kernel drives the devices.
        skipped: devices that are left out, with the reason, for the log.
    """

    groups: tuple[WantedGroup, ...]
    spec: Spec
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttachedGroup:
    """An IOMMU group that the guest has, for the agent.

    Attributes:
        wanted: the group.
        kind: the agent's device type.
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
    # A privileged container has every device of the host in its spec. It gets the guest's, and none of these.
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
        # The group does not exist on this host, which is the error that follows.
        return int(name)
    return None


@dataclass(frozen=True)
class Ports:
    """The root ports that a spec's devices need.

    Attributes:
        count: how many.
        window: bytes of 64-bit MMIO space that each must have for BARs; 0 if the default suffices.
    """

    count: int = 0
    window: int = 0


def ports(spec: Spec, iommu: Iommu) -> Ports:
    """The root ports that a spec's VFIO devices need. A look at the host.

    A group that does not exist or is not ready is not counted: creating the container fails later.
    """
    count = largest = 0
    for wanted in plan_vfio(spec, GUEST_KERNEL, groups_of(spec, iommu)).groups:
        try:
            devices = [device for device in iommu.devices(wanted.group) if not device.is_bridge]
        except KataError:
            continue
        count += len(devices)
        largest = max([largest, *(device.window for device in devices)])
    return Ports(count, 0 if largest <= _DEFAULT_WINDOW else 1 << (largest - 1).bit_length())


def cold_devices(spec: Spec, config: Config, iommu: Iommu) -> dict[int, list[VfioDevice]]:
    """The devices that the VM boots with, by group; none unless `cold_plug_vfio` says so. A look at the host.

    Args:
        spec: of the sandbox's first container.
        config: the sandbox's.
        iommu: the host's.

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
    """A group that the VM has."""

    options: tuple[str, ...] = ()
    cold: bool = False
    devices: list[str] = field(default_factory=list)
    users: set[str] = field(default_factory=set)


class IommuGroups:
    """The IOMMU groups of one sandbox's VM.

    Args:
        vm: the VM.
        config: says what a container gets of a group, and whether groups may be hot-plugged.
        iommu: the host's.
        cold: what the VM was booted with, from `cold_devices`.
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
        # A container that comes while a group is being plugged waits for it.
        self._lock = asyncio.Lock()

    async def attach(self, owner: str, wanted: Sequence[WantedGroup]) -> list[AttachedGroup]:
        """Plug the groups of a container; all of them or none.

        Args:
            owner: the container's id.
            wanted: its groups.

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
                    f"cannot plug IOMMU group {group}: VFIO hot-plug is disabled",
                    hint="set hot_plug_vfio to root-port in the configuration",
                )
            devices = self._iommu.assignable(group)
            there = self._plugged[group] = _Plugged(users={owner})
            there.options = tuple([await self._plug(there, device) for device in devices])
        elif self._mode != GUEST_KERNEL and not there.users <= {owner}:
            raise FailedPrecondition(f"IOMMU group {group} is in use by another container of this sandbox")
        there.users.add(owner)
        return there.options

    async def _plug(self, plugged: _Plugged, device: HostDevice) -> str:
        wanted = _device(device)
        path = await self._vm.plug(wanted)
        plugged.devices.append(wanted.id)
        log.info("device %s of the host is at %s in the guest", device.address, path)
        return f"{device.address}={path}"

    def describe(self) -> list[dict[str, Any]]:
        """The groups that the VM has, for JSON."""
        return [
            {"type": "iommu group", "group": group, "devices": list(one.options), "containers": sorted(one.users)}
            for group, one in self._plugged.items()
        ]

    async def detach(self, owner: str) -> None:
        """Unplug what no other container uses. What the guest does not release is logged, and ends with the VM."""
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
