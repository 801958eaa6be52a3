"""The host's devices that one sandbox has: disks, direct volumes, swap, IOMMU groups, network cards.

Decides what each container gets of them, gives it, and takes it back. What few sandboxes have is imported with the
first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

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
from kata.runtime.storage.disk import DiskPlan, plan_disks
from kata.runtime.storage.host_paths import HostView, RootfsMount, random_token

if TYPE_CHECKING:
    from kata.linux.rtnetlink import Link
    from kata.runtime.devices.direct_volumes import Volumes
    from kata.runtime.devices.swap import Swap


@dataclass(frozen=True)
class Wanted:
    """What a container is to have.

    Attributes:
        swap: bytes of it that its guest needs.
    """

    disks: DiskPlan
    vfio: VfioPlan
    swap: int

    @property
    def skipped(self) -> tuple[str, ...]:
        """What was left out, with the reason, for the log."""
        return (*self.disks.skipped, *self.vfio.skipped)


@dataclass(frozen=True)
class Given:
    """What a container has got, as the agent is told of it.

    Attributes:
        spec: the container's, with the devices that the guest can have.
    """

    spec: Spec
    disks: Sequence[Attached]
    groups: Sequence[AttachedGroup]


@dataclass(frozen=True)
class _Machine:
    """What devices are given to, and who keeps count of them."""

    vm: VirtualMachine
    agent: AgentClient
    disks: Disks
    groups: IommuGroups


class HostDevices:
    """Those of one sandbox, for as long as its machine lives."""

    def __init__(self, sandbox_id: str, config: Config, ledger: Ledger) -> None:
        self._id = sandbox_id
        self._config = config
        self._ledger = ledger
        self._iommu = Iommu()
        self._cold: dict[int, list[VfioDevice]] = {}
        self._begun: _Machine | None = None
        self._volumes: Volumes | None = None
        self._swap: Swap | None = None

    def named(self, bundle: Bundle) -> Bundle:
        """The bundle with devices of the host that its annotations name (CDI). Raises as `kata.oci.cdi.by_host`."""
        directories = self._config.runtime.cdi_spec_dirs
        if not directories or not bundle.spec.get("annotations"):
            return bundle
        from kata.oci import cdi

        return replace(bundle, spec=cdi.by_host(bundle.spec, [str(one) for one in directories]))

    def at_boot(self, spec: Spec) -> tuple[Ports, tuple[VfioDevice, ...]]:
        """What the machine of a sandbox whose first container has this spec needs: root ports, and devices in them.

        Raises:
            NotFound, FailedPrecondition: a device that is to be there is not ready.
        """
        self._cold = cold_devices(spec, self._config, self._iommu)
        return ports(spec, self._iommu), tuple(chain.from_iterable(self._cold.values()))

    def begin(self, vm: VirtualMachine, agent: AgentClient) -> None:
        """The machine is there, as `at_boot` has wanted it."""
        disks = Disks(vm, self._config.hypervisor)
        self._begun = _Machine(vm, agent, disks, IommuGroups(vm, self._config, self._iommu, self._cold))

    @property
    def _machine(self) -> _Machine:
        if self._begun is None:
            raise FailedPrecondition(f"sandbox {self._id} has no virtual machine yet")
        return self._begun

    def plan(
        self, container_id: str, spec: Spec, rootfs: Sequence[RootfsMount], host: HostView, memory_mib: int
    ) -> Wanted:
        """Plan what a container gets.

        Args:
            container_id: the container's.
            spec: its OCI spec.
            rootfs: mounts of its rootfs, from containerd.
            host: what the paths and disks of both are.
            memory_mib: the VM's memory.

        Raises:
            NotFound, InvalidArgument, FailedPrecondition: as `plan_disks` and `swap.wanted`.
        """
        enabled = not self._config.hypervisor.disable_block_device_use
        disks = plan_disks(container_id, spec, rootfs, host, token=random_token, enabled=enabled)
        vfio = plan_vfio(disks.spec, self._config.runtime.vfio_mode, groups_of(spec, self._iommu))
        return Wanted(disks, vfio, self._wanted_swap(spec, memory_mib))

    def _wanted_swap(self, spec: Spec, memory_mib: int) -> int:
        if not self._config.hypervisor.enable_guest_swap or not spec.get("annotations"):
            return 0
        from kata.runtime.devices import swap

        return swap.wanted(spec, memory_mib)

    async def give(self, container_id: str, wanted: Wanted) -> Given:
        """Plug in what a container is to have. After an error `take_back` is the caller's.

        Raises:
            KataError: as `Disks.attach`, `IommuGroups.attach`, `Swap.provide`.
        """
        disks = await self._machine.disks.attach(container_id, wanted.disks.disks) if wanted.disks.disks else ()
        groups = await self._machine.groups.attach(container_id, wanted.vfio.groups) if wanted.vfio.groups else ()
        if wanted.disks.volumes:
            self.volumes().add(wanted.disks.volumes)
        spec = wanted.vfio.spec
        if wanted.swap:
            spec = await self._provide_swap(container_id, spec, wanted.swap)
        return Given(spec, disks, groups)

    async def _provide_swap(self, container_id: str, spec: Spec, size: int) -> Spec:
        from kata.runtime.devices import swap

        if self._swap is None:
            self._swap = swap.Swap(self._machine.vm, self._machine.agent, self._config.hypervisor.guest_swap_path)
        await self._swap.provide(container_id, size)
        return swap.with_limit(spec, size)

    async def take_back(self, container_id: str) -> None:
        """Take back what only this container had."""
        if self._swap is not None:
            self._swap.leave(container_id)
        await self._machine.groups.detach(container_id)
        await self._machine.disks.detach(container_id)

    async def lend_nic(self, link: Link) -> str:
        """Give the machine a network card; its PCI path there. Raises as `kata.runtime.devices.nics.lend_nic`."""
        from kata.runtime.devices.nics import lend_nic

        def hold(value: str) -> None:
            self._ledger.hold(PCI, value)

        return await lend_nic(link, self._iommu, self._machine.groups, hold)

    def volumes(self) -> Volumes:
        """The sandbox's direct volumes."""
        if self._volumes is None:
            from kata.runtime.devices.direct_volumes import Volumes

            self._volumes = Volumes(self._id, self._ledger, self._machine.disks, self._machine.agent)
        return self._volumes
