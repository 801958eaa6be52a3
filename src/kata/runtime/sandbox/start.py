"""Start a sandbox, phase by phase: plan, host cgroup, VM, devices, network, the sandbox in the guest, management.

Each phase pushes onto the teardown what releases what it has acquired; a start that fails runs the teardown, and one
that succeeds hands it to the `Sandbox`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kata.errors import KataError
from kata.loop.off import off_loop
from kata.metrics.durations import Durations
from kata.oci.spec import Bundle, Spec, namespace_path
from kata.runtime import tracing
from kata.runtime.config.settings import Config
from kata.runtime.devices.host_devices import HostDevices
from kata.runtime.hypervisor import accel
from kata.runtime.hypervisor.base import VmPlan
from kata.runtime.launch import shared_fs
from kata.runtime.launch.bring_up import Progress
from kata.runtime.launch.host import look_at_host
from kata.runtime.launch.sandbox_vm import Prepared, SandboxVm, obtain_vm
from kata.runtime.launch.timings import Timings
from kata.runtime.launch.vm_plan import plan_vm
from kata.runtime.ledger import names
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import PROCESS
from kata.runtime.network.own_network import OwnNetwork
from kata.runtime.resources.host_cgroup import CgroupPaths, HostCgroup, plan_cgroups
from kata.runtime.resources.limits import sandbox_budget
from kata.runtime.resources.membership import Membership
from kata.runtime.resources.resize import SandboxResources
from kata.runtime.resources.sizing import Budget, Size
from kata.runtime.sandbox import requests
from kata.runtime.sandbox.container import Container
from kata.runtime.sandbox.event_log import EventLog
from kata.runtime.sandbox.flush import flush_guest
from kata.runtime.sandbox.health import watch_guest
from kata.runtime.sandbox.management import Management
from kata.runtime.sandbox.origin import origin_of
from kata.runtime.sandbox.sandbox import Sandbox
from kata.runtime.sandbox.teardown import Teardown, cancel
from kata.runtime.storage.host_mounts import on_host
from kata.runtime.storage.host_paths import shm_size

if TYPE_CHECKING:
    from kata.management.server import Routes
    from kata.runtime.network.sandbox_network import SandboxNetwork, Seen
    from kata.runtime.tracing.guest import GuestTracing

log = logging.getLogger(__name__)


async def start_sandbox(
    sandbox_id: str,
    bundle: Bundle,
    config: Config,
    ledger: Ledger,
    *,
    begun: float | None = None,
    prepared: Prepared | None = None,
    progress: Progress = log.info,
    calls: Durations | None = None,
) -> Sandbox:
    """Start a VM for the bundle's container or pod, and set the sandbox up in it.

    The caller has entered a mount namespace of its own (`kata.runtime.launch.mount_namespace`).

    Args:
        sandbox_id: the id of the first container as well.
        bundle: of the first container, or of the pod's sandbox.
        config: with the bundle's annotations applied.
        ledger: the sandbox's (`kata.runtime.ledger.journal.claim`), handed over: released if the start fails.
        begun: when the front end began, by `time.monotonic`; None: now.
        prepared: a VM that is taken over if it is what the sandbox needs, else discarded.
        progress: called with a sentence about each step that takes seconds.
        calls: where the front end counts how long its calls take.

    Raises:
        VmLaunchError: the VM or its agent did not come up.
        KataError: the plan is impossible, or the agent refused.
    """
    teardown = Teardown(f"sandbox {sandbox_id}", ledger)
    try:
        timings = Timings(Path(ledger.directory), time.monotonic() if begun is None else begun)
        if begun is not None:
            timings.add("front end", begun)
        config = shared_fs.decide(config, bundle.spec)
        return await _Start(sandbox_id, config, ledger, teardown, timings, progress, calls).run(bundle, prepared)
    except BaseException:
        await teardown.run()
        raise


@dataclass(frozen=True)
class _Plan:
    """What is decided before anything of the sandbox exists."""

    vm: VmPlan
    budget: Budget
    cgroup: CgroupPaths


class _Start:
    """One start: what all phases use, and a method for each."""

    def __init__(
        self,
        sandbox_id: str,
        config: Config,
        ledger: Ledger,
        teardown: Teardown,
        timings: Timings,
        progress: Progress,
        calls: Durations | None,
    ) -> None:
        self._id = sandbox_id
        self._what = f"sandbox {sandbox_id}"
        self._config = config
        self._ledger = ledger
        self._teardown = teardown
        self._steps = teardown.steps
        self._timings = timings
        self._progress = progress
        self._calls = calls
        self._devices = HostDevices(sandbox_id, config, ledger)

    async def run(self, bundle: Bundle, prepared: Prepared | None) -> Sandbox:
        """All phases. What can be found wrong without the VM is found before it, so that it costs no launch.

        Raises:
            KataError: as `start_sandbox`.
        """
        kept = EventLog(self._ledger.directory)
        self._steps.callback(kept.close)
        async with AsyncExitStack() as unused:
            if prepared:
                unused.push_async_callback(prepared.discard)
            spec = self._devices.named(bundle).spec
            requests.refuse_host_network(self._id, spec)
            with self._timings.phase("plan"):
                plan = await self._plan(spec)
            pod = self._pod_network(spec, plan.vm.vcpus)
            seen = pod.look() if pod else None
            self._ledger.hold(PROCESS, self._ledger.directory)
            membership = Membership(HostCgroup(plan.cgroup, self._ledger))
            self._steps.push_async_callback(membership.leave)
            unused.pop_all()  # `obtain_vm` takes it over, or discards it
        guest = await obtain_vm(
            plan.vm, self._config, self._ledger, self._timings, prepared=prepared, progress=self._progress
        )
        containers: dict[str, Container] = {}
        traced = self._hold_guest(guest, membership, containers)
        if traced and self._config.agent.enable_tracing:
            await traced.start()
        self._devices.begin(guest.vm, guest.agent, plan.vm.accelerator)
        resources = self._give_resources(guest, plan, membership.cgroup)
        # Beside the rest: the guest does not need the cgroup yet, and one from standby has left no time to move to it.
        confining = asyncio.create_task(_confine(membership, resources), name=f"host cgroup of {self._what}")
        try:
            network: SandboxNetwork | OwnNetwork | None = pod
            if pod:
                with self._timings.phase("network"):
                    await self._connect(pod, guest, seen)
            elif self._is_connected:
                network = self._own_network(guest, plan.vm.vcpus)
            if paths := [str(path) for path in self._config.runtime.sandbox_bind_mounts]:
                await off_loop(guest.share.add_sandbox_mounts, paths)
            with self._timings.phase("sandbox"):
                shared_memory = await off_loop(on_host, shm_size, spec)
                request = requests.create_sandbox_request(self._id, spec, self._config, shared_memory)
                try:
                    if self._config.agent.policy:
                        await guest.agent.set_policy(self._config.agent.policy)
                    await guest.agent.create_sandbox(request)
                except KataError:
                    log.error("%s: its console ends with: %s", self._what, guest.vm.console_tail())
                    raise
        finally:
            with self._timings.phase("cgroup"):
                await confining
        sandbox = Sandbox(
            self._id,
            self._config,
            self._ledger,
            self._teardown,
            self._timings,
            guest,
            devices=self._devices,
            resources=resources,
            network=network,
            containers=containers,
            accelerator=plan.vm.accelerator,
            origin=origin_of(names.split(os.path.basename(self._ledger.directory))[1], spec.get("annotations") or {}),
            calls=self._calls,
        )
        sandbox.events.listen(kept.write)
        self._serve_management(sandbox, bundle)
        self._timings.write()
        return sandbox

    async def _plan(self, spec: Spec) -> _Plan:
        config = self._config
        accelerator = await accel.choose_for(config.hypervisor)
        log.info("accelerator %s: %s", accelerator.name, accelerator.reason)
        host = look_at_host(config.hypervisor, accelerator.name)
        ports, devices = self._devices.at_boot(spec)
        vm = plan_vm(
            self._id,
            Path(self._ledger.directory),
            spec,
            config,
            host,
            root_ports=ports.count,
            mmio_window=ports.window,
            devices=devices,
        )
        log.debug("plan of %s: %s", self._what, vm)
        budget = sandbox_budget(self._id, spec, config, host.size)
        # Not the id, of which each namespace of containerd may have one.
        name = os.path.basename(self._ledger.directory)
        return _Plan(vm, budget, plan_cgroups(name, spec, sandbox_cgroup_only=config.runtime.sandbox_cgroup_only))

    @property
    def _is_connected(self) -> bool:
        return self._config.runtime.internetworking_model != "none"

    def _pod_network(self, spec: Spec, vcpus: int) -> SandboxNetwork | None:
        """The network namespace that was made for the pod; None without one."""
        path = namespace_path(spec, "network")
        if not path or not self._is_connected:
            return None
        network = self._open_network(path, vcpus)
        self._steps.callback(network.close)
        return network

    def _own_network(self, guest: SandboxVm, vcpus: int) -> OwnNetwork:
        """The network namespace that the VMM has, which the container engine may put interfaces into."""
        network = OwnNetwork(guest.vm, lambda path: self._open_network(path, vcpus))
        self._steps.callback(network.close)
        self._steps.push_async_callback(network.end)
        network.follow(guest.vm, guest.agent)
        return network

    def _open_network(self, path: str, vcpus: int) -> SandboxNetwork:
        # Imported with the first interface: a sandbox without one does without.
        from kata.runtime.network.endpoints import Rates
        from kata.runtime.network.sandbox_network import SandboxNetwork

        hypervisor = self._config.hypervisor
        rates = Rates(hypervisor.rx_rate_limiter_max_rate, hypervisor.tx_rate_limiter_max_rate)
        model = self._config.runtime.internetworking_model
        return SandboxNetwork(path, self._ledger, model, vcpus, rates, self._devices.plug_nic)

    def _hold_guest(
        self, guest: SandboxVm, membership: Membership, containers: dict[str, Container]
    ) -> GuestTracing | None:
        """Have the VM end with the sandbox, and watch it until then; returns what traces it, if anything does."""
        self._steps.push_async_callback(guest.agent.close)
        self._steps.push_async_callback(_end_vm, guest, containers)
        traced = self._trace_guest(guest)
        self._steps.push_async_callback(flush_guest, self._what, guest.agent)
        # This process leaves the host cgroup while the VM ends.
        self._steps.callback(membership.begin_leaving)
        self._steps.callback(guest.slot.release)
        watching = asyncio.create_task(watch_guest(self._what, guest.vm, guest.agent), name=f"health of {self._what}")
        self._steps.push_async_callback(cancel, watching)
        return traced

    def _trace_guest(self, guest: SandboxVm) -> GuestTracing | None:
        tracer = tracing.active()
        if tracer is None:
            return None
        # Imported on first use: it needs OpenTelemetry.
        from kata.runtime.tracing.guest import GuestTracing

        traced = GuestTracing(tracer, guest.agent)
        self._steps.push_async_callback(traced.end)
        return traced

    def _give_resources(self, guest: SandboxVm, plan: _Plan, cgroup: HostCgroup) -> SandboxResources:
        resources = SandboxResources(
            self._ledger.directory,
            guest.vm,
            guest.agent,
            cgroup,
            plan.budget,
            Size(plan.vm.vcpus, plan.vm.memory_mib),
            static=self._config.runtime.static_sandbox_resource_mgmt,
        )
        self._steps.callback(resources.close)
        return resources

    async def _connect(self, network: SandboxNetwork, guest: SandboxVm, seen: Seen | None) -> None:
        self._steps.push_async_callback(network.end)
        # First, so that no change is lost.
        network.follow(guest.vm, guest.agent)
        await network.fit(guest.vm, guest.agent, seen)
        await network.forward(guest.agent)

    def _serve_management(self, sandbox: Sandbox, bundle: Bundle) -> None:
        management = Management(self._ledger.directory, partial(self._routes, sandbox))
        self._steps.push_async_callback(management.close)
        management.serve(str(bundle.path))

    def _routes(self, sandbox: Sandbox, opened: AsyncExitStack) -> Routes:
        # Imported for the first client: most sandboxes never have one.
        from kata.runtime.sandbox.routes import routes

        return routes(sandbox, self._ledger.directory, self._devices.volumes(), opened)


async def _confine(membership: Membership, resources: SandboxResources) -> None:
    await membership.entered()
    await resources.confine()


async def _end_vm(guest: SandboxVm, containers: dict[str, Container]) -> None:
    """End the VM, then close what has relied on it."""
    try:
        with tracing.span("end of the VM"):
            await guest.vm.stop()
    finally:
        async with AsyncExitStack() as closing:
            for container in containers.values():
                closing.push_async_callback(container.close)
