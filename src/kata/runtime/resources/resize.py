"""The sandbox's machine and its control group follow what its containers may use.

Growing comes before the container that needs it, and is all or an error. Shrinking comes after, and is as much as the
guest lets go of: nobody waits for it but who has asked for lower limits, and that one not long.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kata.errors import KataError
from kata.oci.spec import LinuxResources, Spec
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.config.settings import Config
from kata.runtime.hypervisor.base import VirtualMachine
from kata.runtime.ledger.journal import Ledger
from kata.runtime.resources.host_cgroup import HostCgroup, plan_cgroups
from kata.runtime.resources.limits import add_container, host_size, sandbox_budget
from kata.runtime.resources.sizing import Demand, Size
from kata.runtime.resources.status import write_status

log = logging.getLogger(__name__)

#: Seconds for the guest to take processors and memory in use: half a second each without KVM.
_ONLINE_TIMEOUT_S = 60.0


class SandboxResources:
    """One sandbox's.

    Args:
        spec: of its first container, or of the pod.

    Raises:
        InvalidArgument: a limit that no kernel would take, or a control group that is none.
    """

    def __init__(self, sandbox_id: str, spec: Spec, config: Config, ledger: Ledger) -> None:
        only = config.runtime.sandbox_cgroup_only
        self._group = HostCgroup(plan_cgroups(sandbox_id, spec, sandbox_cgroup_only=only), ledger)
        self._budget = sandbox_budget(sandbox_id, spec, config, host_size())
        self._static = config.runtime.static_sandbox_resource_mgmt
        self._directory = ledger.directory
        self._size = Size(0, 0)
        self._vm: VirtualMachine | None = None
        self._agent: AgentClient | None = None
        self._entering: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._shrinking: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()

    def enter(self) -> None:
        """Have this process and its children move to the control group, which takes a while, beside other things."""
        self._entering = asyncio.create_task(asyncio.to_thread(self._group.enter))

    async def begin(self, vm: VirtualMachine, agent: AgentClient, size: Size) -> None:
        """The machine runs.

        Args:
            size: it has this.

        Raises:
            FailedPrecondition: there is no control group.
        """
        if self._entering is not None:
            await asyncio.shield(self._entering)
        self._vm, self._agent, self._size = vm, agent, size
        await self._confine()

    @property
    def size(self) -> Size:
        """What the machine has now."""
        return self._size

    async def end(self) -> None:
        """Change nothing any more; this process begins to move out of the control group."""
        for task in self._shrinking:
            task.cancel()
        if self._entering is not None:
            await asyncio.wait({self._entering})
        self._leaving = asyncio.create_task(asyncio.to_thread(self._group.leave))

    async def left(self) -> None:
        """Wait until it is out, so that the group can be removed when nothing else is in it either."""
        if self._leaving is not None:
            await self._leaving

    @asynccontextmanager
    async def admit(self, container_id: str, spec: Spec) -> AsyncIterator[None]:
        """Make room for a container, which is created within. If that fails, all is as before."""
        former = self._budget.get(container_id)
        add_container(self._budget, container_id, spec)
        async with self._room(container_id, former):
            yield

    @asynccontextmanager
    async def change(self, container_id: str, resources: LinuxResources) -> AsyncIterator[None]:
        """Make room for a container's new limits, which are set within; afterwards take away what nobody needs."""
        former = self._budget.get(container_id)
        self._budget.update(container_id, resources)
        async with self._room(container_id, former):
            yield
        await self._fit(shrink=True)

    @asynccontextmanager
    async def _room(self, container_id: str, former: Demand | None) -> AsyncIterator[None]:
        try:
            await self._fit(shrink=False)
            yield
        except BaseException:
            self._budget.restore(container_id, former)
            self._shrink_later()
            raise

    def dismiss(self, container_id: str) -> None:
        """A container has gone."""
        self._budget.restore(container_id, None)
        self._shrink_later()

    def _shrink_later(self) -> None:
        task = asyncio.create_task(self._try_to_shrink())
        self._shrinking.add(task)
        task.add_done_callback(self._shrinking.discard)

    async def _try_to_shrink(self) -> None:
        try:
            await self._fit(shrink=True)
        except KataError as error:
            log.info("the machine keeps its size: %s", error)

    async def _fit(self, *, shrink: bool) -> None:
        """Bring machine and control group to what the containers may use now."""
        async with self._lock:
            wanted = self._budget.size()
            if not shrink:
                wanted = Size(max(wanted.vcpus, self._size.vcpus), max(wanted.memory_mib, self._size.memory_mib))
            if not self._static and wanted != self._size and self._vm is not None and self._agent is not None:
                resized = await self._vm.resize(wanted.vcpus, wanted.memory_mib)
                self._size = Size(resized.vcpus, resized.memory_mib)
                if resized.new_vcpus or resized.new_memory:
                    await self._agent.online(resized.new_vcpus, _ONLINE_TIMEOUT_S, memory=resized.new_memory)
                log.info("the machine has %s virtual CPUs and %s MiB", resized.vcpus, resized.memory_mib)
            await self._confine()

    async def _confine(self) -> None:
        if self._vm is not None and self._group.parts_threads:
            self._group.confine(self._vm.pid, await self._vm.vcpu_threads())
        self._group.limit(self._budget.limits(self._size.memory_mib))
        write_status(self._directory, self._size, self._group.groups)
