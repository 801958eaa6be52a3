"""The size of a sandbox's VM and the limits of its host cgroup follow what its containers may use.

Growing comes before the container that needs it, and either succeeds as a whole or is an error. Shrinking comes after,
as far as the guest lets go; only a request for lower limits waits for it, and not for long.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kata.errors import KataError
from kata.oci.spec import LinuxResources, Spec
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.hypervisor.base import VirtualMachine
from kata.runtime.resources.host_cgroup import HostCgroup
from kata.runtime.resources.limits import add_container
from kata.runtime.resources.sizing import Budget, Demand, Size, limits_of
from kata.runtime.resources.status import write_status

log = logging.getLogger(__name__)

#: Seconds for the guest to bring vCPUs and memory online: half a second each without KVM.
_ONLINE_TIMEOUT_S = 60.0


class SandboxResources:
    """The resources of one running sandbox.

    Args:
        directory: the sandbox's state directory, where its status is written.
        budget: what its containers may use; counts in the first one, or the pod, already.
        size: what the VM has.
        static: whether the VM keeps that size (`static_sandbox_resource_mgmt`).
    """

    def __init__(
        self,
        directory: str,
        vm: VirtualMachine,
        agent: AgentClient,
        cgroup: HostCgroup,
        budget: Budget,
        size: Size,
        *,
        static: bool,
    ) -> None:
        self._directory = directory
        self._vm = vm
        self._agent = agent
        self._cgroup = cgroup
        self._budget = budget
        self._size = size
        self._static = static
        self._shrinking: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()

    @property
    def size(self) -> Size:
        """What the VM has now."""
        return self._size

    def close(self) -> None:
        """Shrink no more."""
        for task in self._shrinking:
            task.cancel()

    @asynccontextmanager
    async def admit(self, container_id: str, spec: Spec) -> AsyncIterator[None]:
        """Make room for a container, which the body creates; if that fails, everything is as before.

        Raises:
            InvalidArgument: a limit that no kernel would take.
            KataError: the VM cannot grow.
        """
        former = self._budget.get(container_id)
        add_container(self._budget, container_id, spec)
        async with self._room(container_id, former):
            yield

    @asynccontextmanager
    async def change(self, container_id: str, resources: LinuxResources) -> AsyncIterator[None]:
        """Make room for a container's new limits, which the body sets; afterwards take away what nobody needs.

        What cannot be taken away stays: the container has its new limits already.

        Raises:
            InvalidArgument: a limit that no kernel would take.
            KataError: the VM cannot grow.
        """
        former = self._budget.get(container_id)
        self._budget.update(container_id, resources)
        async with self._room(container_id, former):
            yield
        self._cgroup.show_limits(container_id, limits_of(self._budget.get(container_id)))
        await self._try_to_shrink()

    async def show(self, container_id: str, pid: int) -> None:
        """Show a container's limits in the host cgroup of the process that stands for it."""
        limits = limits_of(self._budget.get(container_id))
        await asyncio.to_thread(self._cgroup.show, container_id, pid, limits)

    async def hide(self, container_id: str) -> None:
        """That process has ended."""
        try:
            # The kernel may take seconds to remove a cgroup where many come and go.
            await asyncio.to_thread(self._cgroup.hide, container_id)
        except OSError as error:
            log.warning("container %s: a cgroup is left: %s", container_id, error)

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
        """A container is gone: give back, in the background, what only it needed."""
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
            log.info("the VM keeps its size: %s", error)

    async def _fit(self, *, shrink: bool) -> None:
        """Bring VM and host cgroup to what the containers may use now."""
        async with self._lock:
            wanted = self._budget.size()
            if not shrink:
                wanted = Size(max(wanted.vcpus, self._size.vcpus), max(wanted.memory_mib, self._size.memory_mib))
            if not self._static and wanted != self._size:
                resized = await self._vm.resize(wanted.vcpus, wanted.memory_mib)
                self._size = Size(resized.vcpus, resized.memory_mib)
                # After an unplug too: the agent limits the containers by the memory that there is.
                await self._agent.online(resized.new_vcpus, _ONLINE_TIMEOUT_S, memory=resized.new_memory)
                log.info("the VM has %s vCPUs and %s MiB of memory", resized.vcpus, resized.memory_mib)
            await self.confine()

    async def confine(self) -> None:
        """Put the VM under the limits of the host cgroup, and write down what the sandbox has."""
        if self._cgroup.separates_vcpus:
            self._cgroup.confine(self._vm.pid, await self._vm.vcpu_threads())
        self._cgroup.limit(self._budget.limits(self._size.memory_mib))
        write_status(self._directory, self._size, self._cgroup.paths)
