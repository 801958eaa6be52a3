"""The devices of the host that one sandbox has: disks, direct volumes, swap, IOMMU groups, physical NICs.

Plans what each container gets of them, plugs it, and unplugs it. What few sandboxes need is imported on first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from kata.errors import FailedPrecondition
from kata.oci.spec import Bundle, Spec
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.config.settings import Config
from kata.runtime.devices.block import Attached, Disks
from kata.runtime.devices.iommu import Iommu
from kata.runtime.devices.vfio import (
    AttachedGroup,
    IommuGroups,
    Ports,
    VfioPlan,
    cold_devices,
    groups_of,
    plan_vfio,
    ports,
)
from kata.runtime.hypervisor.base import VirtualMachine
from kata.runtime.hypervisor.devices import VfioDevice
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import PCI
from kata.runtime.storage.disk import DiskPlan, Layers, plan_disks
from kata.runtime.storage.host_paths import HostView, RootfsMount, random_token

if TYPE_CHECKING:
    from kata.linux.rtnetlink import Link
    from kata.runtime.devices.direct_volumes import Volumes
    from kata.runtime.devices.swap import Swap


@dataclass(frozen=True)
class Wanted:
    """The plan of a container's devices.

    Attributes:
        disks, vfio: its disks and VFIO devices.
        swap: bytes of swap that the guest needs for it.
    """

    disks: DiskPlan
    vfio: VfioPlan
    swap: int

    @property
    def skipped(self) -> tuple[str, ...]:
        """What is left out, with the reason, for the log."""
        return (*self.disks.skipped, *self.vfio.skipped)


@dataclass(frozen=True)
class Given:
    """What a container has got, for the agent.

    Attributes:
        spec: the container's, with the devices that the guest has.
        disks, groups: its disks and IOMMU groups.
    """

    spec: Spec
    disks: Sequence[Attached]
    groups: Sequence[AttachedGroup]


@dataclass(frozen=True)
class _Running:
    """A running VM and its devices."""

    vm: VirtualMachine
    agent: AgentClient
    disks: Disks
    groups: IommuGroups


class HostDevices:
    """The devices of one sandbox, for as long as its VM runs.

    Args:
        sandbox_id: the sandbox's.
        config: the sandbox's.
        ledger: the sandbox's, for what outlives its process.
    """

    def __init__(self, sandbox_id: str, config: Config, ledger: Ledger) -> None:
        self._id = sandbox_id
        self._config = config
        self._ledger = ledger
        self._iommu = Iommu()
        self._cold: dict[int, list[VfioDevice]] = {}
        self._begun: _Running | None = None
        self._volumes: Volumes | None = None
        self._swap: Swap | None = None

    def named(self, bundle: Bundle) -> Bundle:
        """The bundle with the devices of the host that its annotations name (CDI); raises as `kata.oci.cdi.by_host`."""
        directories = self._config.runtime.cdi_spec_dirs
        if not directories or not bundle.spec.get("annotations"):
            return bundle
        from kata.oci import cdi

        return replace(bundle, spec=cdi.by_host(bundle.spec, [str(one) for one in directories]))

    def at_boot(self, spec: Spec) -> tuple[Ports, tuple[VfioDevice, ...]]:
        """What the VM needs for the first container: root ports, and devices to boot with. A look at the host.

        Raises:
            NotFound, FailedPrecondition: a device to boot with is not ready.
        """
        self._cold = cold_devices(spec, self._config, self._iommu)
        return ports(spec, self._iommu), tuple(chain.from_iterable(self._cold.values()))

    def begin(self, vm: VirtualMachine, agent: AgentClient, accelerator: str) -> None:
        """The VM runs under an accelerator, as `at_boot` has requested it."""
        disks = Disks(vm, self._config.hypervisor, accelerator)
        self._begun = _Running(vm, agent, disks, IommuGroups(vm, self._config, self._iommu, self._cold))

    @property
    def _running(self) -> _Running:
        if self._begun is None:
            raise FailedPrecondition(f"sandbox {self._id} has no VM yet")
        return self._begun

    def plan(
        self,
        container_id: str,
        spec: Spec,
        rootfs: Sequence[RootfsMount],
        host: HostView,
        memory_mib: int,
        layers: Layers | None = None,
    ) -> Wanted:
        """Plan what a container gets.

        Args:
            container_id: the container's.
            spec: its OCI spec.
            rootfs: mounts of its rootfs, from containerd.
            host: what the paths and disks of both are.
            memory_mib: the VM's memory.
            layers: what the rootfs is made of instead, if it is on disks.

        Raises:
            NotFound, InvalidArgument, FailedPrecondition: as `plan_disks` and `swap.wanted`.
        """
        enabled = not self._config.hypervisor.disable_block_device_use
        disks = plan_disks(container_id, spec, rootfs, host, token=random_token, layers=layers, enabled=enabled)
        vfio = plan_vfio(disks.spec, self._config.runtime.vfio_mode, groups_of(spec, self._iommu))
        return Wanted(disks, vfio, self._wanted_swap(spec, memory_mib))

    def _wanted_swap(self, spec: Spec, memory_mib: int) -> int:
        if not self._config.hypervisor.enable_guest_swap or not spec.get("annotations"):
            return 0
        from kata.runtime.devices import swap

        return swap.wanted(spec, memory_mib)

    async def give(self, container_id: str, wanted: Wanted) -> Given:
        """Plug the devices of a container. After an error, the caller calls `take_back`.

        Raises:
            KataError: as `Disks.attach`, `IommuGroups.attach`, `Swap.provide`.
        """
        disks = await self._running.disks.attach(container_id, wanted.disks.disks) if wanted.disks.disks else ()
        groups = await self._running.groups.attach(container_id, wanted.vfio.groups) if wanted.vfio.groups else ()
        if wanted.disks.volumes:
            self.volumes().add(wanted.disks.volumes)
        spec = wanted.vfio.spec
        if wanted.swap:
            spec = await self._provide_swap(container_id, spec, wanted.swap)
        return Given(spec, disks, groups)

    async def _provide_swap(self, container_id: str, spec: Spec, size: int) -> Spec:
        from kata.runtime.devices import swap

        if self._swap is None:
            self._swap = swap.Swap(self._running.vm, self._running.agent, self._config.hypervisor.guest_swap_path)
        await self._swap.provide(container_id, size)
        return swap.with_limit(spec, size)

    async def take_back(self, container_id: str) -> None:
        """Unplug what no other container uses."""
        if self._swap is not None:
            self._swap.leave(container_id)
        await self._running.groups.detach(container_id)
        await self._running.disks.detach(container_id)

    async def plug_nic(self, link: Link) -> str:
        """Plug a physical NIC; returns its PCI path in the guest. Raises as `kata.runtime.devices.nics.plug_nic`."""
        from kata.runtime.devices.nics import plug_nic

        def hold(value: str) -> None:
            self._ledger.hold(PCI, value)

        return await plug_nic(link, self._iommu, self._running.groups, hold)

    def describe(self) -> list[dict[str, Any]]:
        """Disks and IOMMU groups that the VM has, for JSON."""
        return [*self._running.disks.describe(), *self._running.groups.describe()] if self._begun else []

    def volumes(self) -> Volumes:
        """The sandbox's direct volumes."""
        if self._volumes is None:
            from kata.runtime.devices.direct_volumes import Volumes

            self._volumes = Volumes(self._id, self._ledger, self._running.disks, self._running.agent)
        return self._volumes
