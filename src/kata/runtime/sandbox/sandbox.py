"""A sandbox: one virtual machine, the agent in it, and the containers that share it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kata.errors import (
    AlreadyExists,
    FailedPrecondition,
    KataError,
    NotFound,
    Unavailable,
)
from kata.oci.convert import dropped_fields
from kata.oci.ids import validate_id
from kata.oci.spec import Bundle, LinuxResources, Spec
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.config.settings import Config
from kata.runtime.devices.host_devices import HostDevices
from kata.runtime.hypervisor import accel
from kata.runtime.hypervisor.base import VirtualMachine, VmPlan
from kata.runtime.hypervisor.deadline import before_deadline
from kata.runtime.launch import bring_up
from kata.runtime.launch.prelaunch import Prelaunch
from kata.runtime.launch.standby import Standby
from kata.runtime.launch.start_slots import StartSlot, acquire, try_acquire
from kata.runtime.launch.timings import Timings
from kata.runtime.launch.vm_plan import plan_vm
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import HOOKS, PROCESS, TREE
from kata.runtime.resources.resize import SandboxResources
from kata.runtime.resources.sizing import Size
from kata.runtime.sandbox import requests
from kata.runtime.sandbox.container import Container
from kata.runtime.sandbox.management import Management
from kata.runtime.sandbox.states import Lifecycle, State
from kata.runtime.sandbox.stdio import Stdio
from kata.runtime.storage.shared_tree import RootfsMount, SharedTree, plan_container

if TYPE_CHECKING:
    from kata.runtime.network.endpoints import Endpoint
    from kata.runtime.network.sandbox_network import SandboxNetwork
    from kata.runtime.sandbox.hooks import HostHooks

log = logging.getLogger(__name__)

_Part = TypeVar("_Part")

#: Seconds between two looks at the agent's health, and seconds it has to answer before the guest counts as hung.
_CHECK_INTERVAL_S = 5.0
_CHECK_TIMEOUT_S = 30.0
#: Seconds the guest has to flush what it holds and let go, before its machine is stopped anyway.
_DESTROY_TIMEOUT_S = 3.0
#: Seconds that others wait for a sandbox's next step: its first container, and that one's start.
_SLOT_LINGER_S = 0.7


@dataclass(frozen=True)
class ContainerRequest:
    """What a front end asks for.

    Attributes:
        rootfs: mounts that make the rootfs; empty if the bundle's root directory already is one.
    """

    id: str
    bundle: Bundle
    stdio: Stdio
    rootfs: Sequence[RootfsMount] = ()


class Sandbox(Lifecycle):
    """A running sandbox. Made by `start`, ended by `stop`; everything it holds is on its ledger.

    Attributes:
        pid: the virtual machine's process id, which managers get to see as every container's; it stays the same number
            after the machine has ended.
    """

    def __init__(
        self,
        sandbox_id: str,
        config: Config,
        ledger: Ledger,
        begun: float,
        standby: Standby | None,
        prelaunch: Prelaunch | None,
    ) -> None:
        super().__init__(f"sandbox {sandbox_id}")
        self.id = sandbox_id
        self.pid = 0
        self.containers: dict[str, Container] = {}
        self._config = config
        self._ledger = ledger
        self._directory = Path(ledger.directory)
        self._standby = standby
        self._prelaunch = prelaunch
        self._share = SharedTree((standby.directory if standby else self._directory) / "shared")
        self._slot = StartSlot(-1)
        self._vm: VirtualMachine | None = None
        self._agent: AgentClient | None = None
        self._devices = HostDevices(sandbox_id, config, ledger)
        self._creating: set[str] = set()
        self._timings = Timings(self._directory, begun)
        self._monitor: asyncio.Task[None] | None = None
        self._network: SandboxNetwork | None = None
        self._resources: SandboxResources | None = None
        self._hooks: dict[str, HostHooks] = {}
        self._management: Management | None = None
        #: The first container's root in the guest, which has room for what belongs to the pod.
        self._root = ""

    @classmethod
    async def start(
        cls,
        sandbox_id: str,
        bundle: Bundle,
        config: Config,
        ledger: Ledger,
        *,
        begun: float | None = None,
        standby: Standby | None = None,
        prelaunch: Prelaunch | None = None,
        progress: Callable[[str], None] = log.info,
    ) -> Sandbox:
        """Start a virtual machine for the bundle's container or pod and set the sandbox up in it.

        The caller has entered a mount namespace of its own (`kata.runtime.launch.mount_namespace`) and hands the
        sandbox's ledger over (`kata.runtime.ledger.journal.claim`): on failure it has been released. `progress` is
        told what takes seconds.
        `standby` or `prelaunch`, if the machine wanted is like it, becomes the sandbox's, else is discarded.
        `begun` is when the front end began with it, by `time.monotonic`: now, if it does not say.

        Raises:
            VmLaunchError: the machine or its agent did not come up.
            KataError: the plan is impossible, or the agent refused.
        """
        try:
            begin = time.monotonic() if begun is None else begun
            sandbox = cls(sandbox_id, config, ledger, begin, standby, prelaunch)
            if begun is not None:
                sandbox._timings.add("front end", begun)
        except BaseException:
            ledger.release()
            raise
        try:
            await sandbox._start(bundle, progress)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(sandbox.stop()))
            raise
        return sandbox

    async def _start(self, bundle: Bundle, progress: Callable[[str], None]) -> None:
        bundle = self._devices.named(bundle)
        requests.refuse_host_network(self.id, bundle.spec)
        with self._timings.phase("plan"):
            accelerator = await accel.choose_for(self._config.hypervisor)
            log.info("accelerator %s: %s", accelerator.name, accelerator.reason)
            wanted, devices = self._devices.at_boot(bundle.spec)
            vm_plan = plan_vm(
                self.id,
                self._directory,
                bundle.spec,
                self._config,
                accelerator=accelerator.name,
                root_ports=wanted.count,
                mmio_window=wanted.window,
                devices=devices,
            )
            resources = self._resources = SandboxResources(self.id, bundle.spec, self._config, self._ledger)
        log.debug("plan of %s: %s", self.what, vm_plan)
        interfaces = self._look_at_network(bundle.spec, vm_plan.vcpus)
        self._ledger.hold(PROCESS, self._ledger.directory)
        resources.enter()
        if self._standby and self._standby.suits(vm_plan):
            with self._timings.phase("standby"):
                vm, self._agent = self._take(self._standby)
        else:
            if self._standby:
                log.info("the machine in standby is not what %s needs", self.what)
                await self._discard_standby()
            vm, self._agent = await self._bring_up(vm_plan, progress)
        self._vm = vm
        self._monitor = asyncio.create_task(self._watch_agent(vm, self._agent), name=f"monitor of {self.what}")
        self._devices.begin(vm, self._agent)
        self.pid = vm.pid
        # The guest does not need the group yet, and a machine from standby has left no time to move to it.
        grouping = asyncio.create_task(resources.begin(vm, self._agent, Size(vm_plan.vcpus, vm_plan.memory_mib)))
        try:
            if self._network:
                with self._timings.phase("network"):
                    await self._network.fit(vm, self._agent, interfaces)
                    await self._network.forward(self._agent)
                    self._network.follow(vm, self._agent)
            self._share.add_sandbox_mounts([str(path) for path in self._config.runtime.sandbox_bind_mounts])
            with self._timings.phase("sandbox"):
                await self._agent.create_sandbox(requests.create_sandbox_request(self.id, bundle.spec, self._config))
        finally:
            with self._timings.phase("cgroup"):
                await grouping
        self._management = Management(self._ledger.directory, self._agent, self._devices.volumes)
        await self._management.serve()
        self._timings.write()
        self.become(State.CREATED)
        self.become(State.RUNNING)

    async def _bring_up(self, vm_plan: VmPlan, progress: Callable[[str], None]) -> tuple[VirtualMachine, AgentClient]:
        prelaunch, self._prelaunch = self._prelaunch, None
        slot = prelaunch.slot if prelaunch else try_acquire()
        if slot is None:
            with self._timings.phase("start slot"):
                slot = await acquire()
        self._slot = slot
        found = await bring_up.bring_up(vm_plan, self._config, self._ledger, self._timings, progress, prelaunch)
        # For the first container as well, which takes longer than its machine; but it may never come.
        self._slot.end_in(_SLOT_LINGER_S)
        return found

    def _look_at_network(self, spec: Spec, vcpus: int) -> list[Endpoint]:
        """What the pod's network namespace has for the machine; before there is one, so that errors cost no start."""
        path = requests.namespace_of(spec)
        model = self._config.runtime.internetworking_model
        if not path or model == "none":
            return []
        # Imported with the first namespace: a sandbox without one does without.
        from kata.runtime.network.endpoints import Rates
        from kata.runtime.network.sandbox_network import SandboxNetwork

        hypervisor = self._config.hypervisor
        rates = Rates(hypervisor.rx_rate_limiter_max_rate, hypervisor.tx_rate_limiter_max_rate)
        self._network = SandboxNetwork(path, self._ledger, model, vcpus, rates, self._devices.lend_nic)
        return self._network.look()

    def _take(self, standby: Standby) -> tuple[VirtualMachine, AgentClient]:
        """Take over a machine in standby: it is on the sandbox's ledger now, and ends with the sandbox.

        Its own ledger stays locked for as long as this process lives, so that nobody takes it for dead.
        """
        self._ledger.hold(TREE, standby.ledger.directory)
        self._ledger.hold(PROCESS, standby.ledger.directory)
        self._standby = None
        return standby.vm, standby.agent

    async def _discard_standby(self) -> None:
        standby, self._standby = self._standby, None
        if standby:
            await standby.discard()
            self._share = SharedTree(self._directory / "shared")

    async def _watch_agent(self, vm: VirtualMachine, agent: AgentClient) -> None:
        """End the machine of a guest that hangs: every call that waits for it then learns that it is gone."""
        try:
            await bring_up.settle_clock(vm, agent)
            while True:
                await asyncio.sleep(_CHECK_INTERVAL_S)
                await before_deadline("the guest's agent", agent.check(), _CHECK_TIMEOUT_S, vm.pid)
        except Unavailable:
            pass  # the machine has ended
        except KataError as error:
            log.error("%s hangs and is ended: %s; its console ends with: %s", self.what, error, vm.console_tail(3))
            vm.kill()

    @property
    def resources(self) -> SandboxResources:
        return self._there(self._resources)

    @property
    def agent(self) -> AgentClient:
        return self._there(self._agent)

    def _there(self, part: _Part | None) -> _Part:
        """What only a sandbox has that runs. Raises FailedPrecondition."""
        if part is None:
            raise FailedPrecondition(f"{self.what} is {self.state}")
        return part

    def container(self, container_id: str) -> Container:
        """Look a container up.

        Raises:
            NotFound: there is none of that id.
        """
        try:
            return self.containers[container_id]
        except KeyError:
            raise NotFound(f"container {container_id} does not exist") from None

    async def create_container(self, request: ContainerRequest) -> Container:
        """Create a container in the guest; on failure nothing of it stays.

        Raises:
            AlreadyExists: the id is taken.
            KataError: what the spec asks for is impossible, or the agent refused.
        """
        validate_id(request.id)
        self.require("create a container in", State.RUNNING)
        if request.id in self.containers or request.id in self._creating:
            raise AlreadyExists(f"container {request.id} exists already")
        request = replace(request, bundle=self._devices.named(request.bundle))
        spec = request.bundle.spec
        requests.refuse_host_network(request.id, spec)
        wanted = self._devices.plan(request.id, spec, request.rootfs, self.resources.size.memory_mib)
        files = plan_container(
            request.id,
            spec.get("mounts") or (),
            rootfs=request.rootfs,
            rootfs_dir=str(request.bundle.rootfs),
            disk_root=wanted.disks.root,
            on_disk=wanted.disks.mounted,
            pod_root=self._root if request.id != self.id else "",
            hugepages=requests.hugepage_limits(spec),
            guest_empty_dir=not self._config.runtime.disable_guest_empty_dir,
        )
        for reason in (*wanted.skipped, *files.skipped):
            log.info("container %s: %s", request.id, reason)
        if dropped := dropped_fields(spec):
            log.warning("container %s: the guest does not get %s", request.id, ", ".join(dropped))
        container = Container(request.id, self.agent, self._share, files, request.stdio, self._timings)
        hooks = self._host_hooks(request)
        self._creating.add(request.id)
        self._slot.keep()
        try:
            if hooks:
                if hooks.late:
                    self._ledger.hold(HOOKS, hooks.late)
                await hooks.run(*hooks.before_creation, status="creating", pid=self.pid)
            given = await self._devices.give(request.id, wanted)
            message = requests.create_container_request(
                request.id, given.spec, files, self._config, given.disks, given.groups
            )
            async with self.resources.admit(request.id, spec):
                await container.create(message, timeout=self._config.runtime.create_container_timeout)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._devices.take_back(request.id)))
            if hooks:
                await self._end_hooks(hooks)
            raise
        finally:
            self._creating.discard(request.id)
            self._slot.end_in(_SLOT_LINGER_S)
        self.containers[request.id] = container
        if hooks:
            self._hooks[request.id] = hooks
        self._root = self._root or files.guest_rootfs
        return container

    async def start_container(self, container: Container) -> None:
        """Run a created container. What its pod's network has got since the sandbox's start is plugged in first.

        Raises:
            FailedPrecondition: it has been started.
            KataError: the network has what a machine cannot be given, or the agent refused.
        """
        container.require("start", State.CREATED)
        if self._network and self._vm:
            await self._network.fit(self._vm, self.agent)
        try:
            await container.start()
        finally:
            self._slot.end()
        if hooks := self._hooks.get(container.id):
            await hooks.run_after("poststart", status="running", pid=self.pid)

    def _host_hooks(self, request: ContainerRequest) -> HostHooks | None:
        if not request.bundle.spec.get("hooks"):
            return None
        # Imported with the first one: few containers have any.
        from kata.runtime.sandbox.hooks import HostHooks

        # Open for as long as the hooks may run, which is longer than the sandbox has it.
        network = self._network.again() if self._network else None
        return HostHooks(request.id, request.bundle, self._ledger.directory, network)

    async def delete_container(self, container_id: str, *, force: bool = False) -> Container:
        """Delete a container. The sandbox lives on, unless the container is its own: the only one, or a pod's first."""
        container = self.container(container_id)
        hooks = self._hooks.get(container_id)
        if container_id == self.id:
            container.require_deletable(force=force)
            if hooks:
                self._ledger.drop(HOOKS, hooks.late)
            await self.stop()
        else:
            await container.delete(force=force)
            await self._devices.take_back(container_id)
            self.resources.dismiss(container_id)
        del self.containers[container_id]
        if hooks:
            del self._hooks[container_id]
            await self._end_hooks(hooks)
        return container

    async def _end_hooks(self, hooks: HostHooks) -> None:
        """A container has gone: what it wanted to be run then."""
        if self.state is not State.STOPPED:
            self._ledger.drop(HOOKS, hooks.late)
        await hooks.run_after("poststop", status="stopped", pid=0)
        hooks.close()

    async def update_container(self, container_id: str, resources: LinuxResources) -> None:
        """Give a container other limits, and the machine and the control group the size that follows.

        Raises:
            NotFound, FailedPrecondition: there is no such container, or it has stopped.
            InvalidArgument: a limit that no kernel would take.
            KataError: the machine cannot grow, or the agent refused; everything is as before.
        """
        container = self.container(container_id)
        container.require_updatable()
        async with self.resources.change(container_id, resources):
            await container.update(resources)

    async def oom_events(self) -> AsyncIterator[str]:
        """Ids of containers in which something was killed for lack of memory, until the guest is gone."""
        try:
            async for container_id in self.agent.oom_events():
                if container_id in self.containers:
                    yield container_id
        except KataError as error:
            log.debug("no more out-of-memory events: %s", error)

    async def wait_vm(self) -> None:
        """Wait until the virtual machine is gone."""
        if self._vm is not None:
            await self._vm.wait()

    async def stop(self) -> list[str]:
        """End everything and give everything back. Idempotent; never waits for the guest to agree.

        Returns:
            What could not be given back, for the log.
        """
        self.become(State.STOPPED)
        self._slot.end()
        await self._discard_standby()
        if self._prelaunch is not None:
            self._prelaunch.discard()
            self._prelaunch = None
        if self._monitor is not None:
            self._monitor.cancel()
        if self._network is not None:
            await self._network.close()
        if self._management is not None:
            await self._management.close()
        if self._resources is not None:
            await self._resources.end()
        if self._agent is not None:
            try:
                await self._agent.destroy_sandbox(_DESTROY_TIMEOUT_S)
            except KataError as error:
                log.debug("%s: %s", self.what, error)
        if self._vm is not None:
            await self._vm.stop()
        for container in self.containers.values():
            for process in (*container.execs.values(), container.init):
                await process.close()
            self._share.remove(container.id)
        if self._agent is not None:
            await self._agent.close()
            self._agent = None
        if self._resources is not None:
            await self._resources.left()
        problems = self._ledger.release()
        for problem in problems:
            log.warning("%s could not give back: %s", self.what, problem)
        return problems
