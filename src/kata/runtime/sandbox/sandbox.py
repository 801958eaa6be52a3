"""A running sandbox: one VM, the agent in it, and the containers that share it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kata.errors import AlreadyExists, KataError, NotFound
from kata.loop.off import off_loop
from kata.metrics.durations import Durations
from kata.oci.ids import validate_id
from kata.oci.spec import Bundle, LinuxResources
from kata.runtime.config.settings import Config
from kata.runtime.devices.host_devices import HostDevices
from kata.runtime.hypervisor.base import SHARE_VIRTIO_FS
from kata.runtime.launch.sandbox_vm import SandboxVm
from kata.runtime.launch.start_slots import LINGER_S
from kata.runtime.launch.timings import Timings
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import HOOKS
from kata.runtime.resources.resize import SandboxResources
from kata.runtime.sandbox import differences, requests
from kata.runtime.sandbox.container import Container
from kata.runtime.sandbox.events import Event, Events, Happening
from kata.runtime.sandbox.flush import flush_guest
from kata.runtime.sandbox.health import end_guest_of
from kata.runtime.sandbox.origin import container_name
from kata.runtime.sandbox.states import Lifecycle, State
from kata.runtime.sandbox.stdio import Stdio
from kata.runtime.sandbox.teardown import Teardown
from kata.runtime.storage.container_files import plan_container
from kata.runtime.storage.disk import Layers
from kata.runtime.storage.host_mounts import on_host
from kata.runtime.storage.host_paths import HostView, RootfsMount, look_at_exports, look_at_paths

if TYPE_CHECKING:
    from kata.runtime.network.own_network import OwnNetwork
    from kata.runtime.network.sandbox_network import SandboxNetwork
    from kata.runtime.sandbox.hooks import HostHooks
    from kata.runtime.sandbox.metrics import SandboxMetrics

log = logging.getLogger(__name__)

#: Seconds for a container to end after SIGKILL.
_KILL_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class ContainerRequest:
    """A container as a front end asks for it.

    Attributes:
        stdio: the streams of its init process.
        rootfs: mounts that make up the rootfs; empty if the bundle's root directory is one already.
        pids_of: the container whose pid namespace it joins; "" for its own, or the pod's if its spec has a path.
        layers: what the rootfs is made of instead, if it is on disks.
    """

    id: str
    bundle: Bundle
    stdio: Stdio
    rootfs: Sequence[RootfsMount] = ()
    pids_of: str = ""
    layers: Layers | None = None


class Sandbox(Lifecycle):
    """A running sandbox. Made by `kata.runtime.sandbox.start`, ended by `stop`; all that it holds is on its ledger.

    Args:
        teardown: releases everything.
        guest: its VM and agent.
        network: None if the VM gets no interface.
        containers: those of the sandbox, which the teardown closes.
        accelerator: the VM's.
        origin: what has asked for it, as `origin_of` tells.

    Attributes:
        pid: the VMM's process id, which containerd sees as every container's. It stays the same number after the VM
            has ended.
        events: where what happens is told.
        is_halted: whether an operator has ended it (`halt`).
        calls: durations of the front end's calls, by name.
    """

    def __init__(
        self,
        sandbox_id: str,
        config: Config,
        ledger: Ledger,
        teardown: Teardown,
        timings: Timings,
        guest: SandboxVm,
        *,
        devices: HostDevices,
        resources: SandboxResources,
        network: SandboxNetwork | OwnNetwork | None,
        containers: dict[str, Container],
        accelerator: str,
        origin: Mapping[str, Any],
        calls: Durations | None = None,
    ) -> None:
        super().__init__(f"sandbox {sandbox_id}")
        self.id = sandbox_id
        self.pid = guest.vm.pid
        self.agent = guest.agent
        self.containers = containers
        self.events = Events()
        self.is_halted = False
        self.calls = calls or Durations()
        self._config = config
        self._ledger = ledger
        self._teardown = teardown
        self._timings = timings
        self._guest = guest
        self._devices = devices
        self._resources = resources
        self._network = network
        self._accelerator = accelerator
        self._origin = origin
        self._creating: set[str] = set()
        self._deleting: dict[str, asyncio.Lock] = {}
        #: The first container's root in the guest, which has room for what belongs to the pod.
        self._pod_root = ""
        self.become(State.CREATED)
        self.become(State.RUNNING)

    def container(self, container_id: str) -> Container:
        """Look up a container.

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
            FailedPrecondition: the sandbox does not run.
            KataError: what the spec asks for is impossible, or the agent refused.
        """
        validate_id(request.id)
        self.require("create a container in", State.RUNNING)
        if request.id in self.containers or request.id in self._creating:
            raise AlreadyExists(f"container {request.id} already exists")
        request = replace(request, bundle=self._devices.named(request.bundle))
        spec = request.bundle.spec
        requests.refuse_host_network(request.id, spec)
        disks = ExitStack()
        try:
            self._creating.add(request.id)
            try:
                layers = request.layers or await self._layers_of(request, disks)
                # A path may lead to a file server that is away.
                look = partial(look_at_paths, rootfs_dir=str(request.bundle.rootfs))
                host = await off_loop(on_host, look, spec, request.rootfs)
                exports = await off_loop(look_at_exports, str(self._guest.share.directory))
            finally:
                self._creating.discard(request.id)
            return await self._create_container(request, replace(host, exports=exports), layers, disks)
        except BaseException:
            await off_loop(disks.close)
            raise

    async def _layers_of(self, request: ContainerRequest, disks: ExitStack) -> Layers | None:
        """The layers of a rootfs as disks, if the configuration says so and it can be had."""
        if self._config.runtime.rootfs_layers != "disks" or self._config.hypervisor.disable_block_device_use:
            return None
        if self._config.runtime.rootfs_upper == "host":
            if self._config.hypervisor.shared_fs == SHARE_VIRTIO_FS:
                # overlayfs needs attributes there that the server, which lacks CAP_SYS_ADMIN, may not write.
                log.info("container %s: its root is shared: Linux has no overlay written over virtio-fs", request.id)
                return None
            log.warning("container %s: no symbolic link can be made in its root: rootfs_upper is host", request.id)
        # Imported on first use: by default, no sandbox does this.
        from kata.runtime.sandbox.rootfs_layers import MAX_LAYERS, layers_of, overlay_of

        overlay = overlay_of(request.rootfs)
        if overlay is None or len(overlay.lower) > MAX_LAYERS:
            log.info("container %s: its root is no overlay of at most %s layers, and shared", request.id, MAX_LAYERS)
            return None
        with self._timings.phase("layers", request.id):
            return await off_loop(layers_of, overlay, self._config.runtime, disks)

    async def _create_container(
        self, request: ContainerRequest, host: HostView, layers: Layers | None, disks: ExitStack
    ) -> Container:
        self.require("create a container in", State.RUNNING)
        spec, share = request.bundle.spec, self._guest.share
        memory_mib = self._resources.size.memory_mib
        wanted = self._devices.plan(request.id, spec, request.rootfs, host, memory_mib, layers)
        files = plan_container(
            request.id,
            spec.get("mounts") or (),
            host,
            rootfs=request.rootfs,
            rootfs_dir=str(request.bundle.rootfs),
            name=share.new_name,
            exports=share.exports(),
            root_options=requests.root_options(request.id, spec, self._config) if share.has_room_for_root else (),
            disk_root=wanted.disks.root,
            on_disk=wanted.disks.mounted,
            pod_root=self._pod_root if request.id != self.id else "",
            hugepages=requests.hugepage_limits(spec),
            guest_empty_dir=not self._config.runtime.disable_guest_empty_dir,
        )
        files = replace(files, uses=(*files.uses, *wanted.disks.uses))
        for reason in (*wanted.skipped, *files.skipped):
            log.info("container %s: %s", request.id, reason)
        for warning in differences.warnings(spec, host, files, self._config.hypervisor.shared_fs):
            log.warning("container %s: %s", request.id, warning)
        hooks = self._host_hooks(request)
        container = Container(
            request.id,
            self.agent,
            share,
            files,
            request.stdio,
            self._timings,
            hooks,
            disks=disks,
            process_spec=spec.get("process"),
            events=self.events,
            name=container_name(spec.get("annotations") or {}),
            does_not_end=partial(end_guest_of, self._guest.vm),
        )
        self._creating.add(request.id)
        self._guest.slot.keep()
        undo = AsyncExitStack()
        undo.push_async_callback(off_loop, share.remove, request.id)
        try:
            # No other container has been added or removed since the plan was made.
            share.claim(files)
            if hooks:
                undo.push_async_callback(self._end_hooks, hooks)
                if hooks.late:
                    self._ledger.hold(HOOKS, hooks.late)
                await hooks.run(*hooks.before_creation, status="creating", pid=self.pid)
            undo.push_async_callback(self._devices.take_back, request.id)
            given = await self._devices.give(request.id, wanted)
            message = requests.create_container_request(
                request.id,
                given.spec,
                files,
                self._config,
                given.disks,
                given.groups,
                request.pids_of,
                wanted.disks.storages,
            )
            async with self._resources.admit(request.id, spec):
                await container.create(message, timeout=self._config.runtime.create_container_timeout)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(undo.aclose()))
            raise
        finally:
            self._creating.discard(request.id)
            self._guest.slot.release_in(LINGER_S)
        self.containers[request.id] = container
        self._pod_root = self._pod_root or files.guest_rootfs
        return container

    async def start_container(self, container: Container) -> None:
        """Run a created container. Interfaces that its pod has got since the sandbox's start are hot-plugged first.

        Raises:
            FailedPrecondition: it has been started, or the sandbox does not run.
            KataError: the pod has an interface that a VM cannot have, or the agent refused.
        """
        self.require("start a container in", State.RUNNING)
        container.require("start", State.CREATED)
        if self._network:
            await self._network.fit(self._guest.vm, self.agent)
        try:
            await container.start()
        finally:
            self._guest.slot.release()
        if container.hooks:
            await container.hooks.run_after("poststart", status="running", pid=self.pid)

    def _host_hooks(self, request: ContainerRequest) -> HostHooks | None:
        wanted = request.bundle.spec.get("hooks")
        if not wanted:
            return None
        # Imported with the first one: few containers have any.
        from kata.runtime.sandbox.hooks import IN_NETWORK, HostHooks

        network = self._network.again() if self._network and wanted.get(IN_NETWORK) else None
        return HostHooks(request.id, request.bundle, self._ledger.directory, network)

    async def delete_container(self, container_id: str, *, force: bool = False) -> Container:
        """Delete a container; its sandbox too if the container is the sandbox's own: the only one, or the pod's first.

        Raises:
            NotFound: there is no such container, or not any more: another call has just deleted it.
            FailedPrecondition: it runs, and `force` is not set; or the guest keeps it.
        """
        self.container(container_id)
        async with self._deleting.setdefault(container_id, asyncio.Lock()):
            container = await self._delete_container(self.container(container_id), force=force)
        self._deleting.pop(container_id, None)
        return container

    async def _delete_container(self, container: Container, *, force: bool) -> Container:
        container_id, hooks = container.id, container.hooks
        if container_id == self.id:
            container.require_deletable(force=force)
            await container.end_output()
            if hooks:
                self._ledger.drop(HOOKS, hooks.late)
            await self.stop()
        else:
            await container.delete(force=force)
            await self._devices.take_back(container_id)
            await container.let_go_of_disks()
            self._resources.dismiss(container_id)
        del self.containers[container_id]
        self.events.tell(Event(Happening.CONTAINER_DELETED, container_id))
        if hooks:
            await self._end_hooks(hooks)
        return container

    async def _end_hooks(self, hooks: HostHooks) -> None:
        """A container is gone: run the hooks for that."""
        if self.state is not State.STOPPED:
            self._ledger.drop(HOOKS, hooks.late)
        await hooks.run_after("poststop", status="stopped", pid=0)
        hooks.close()

    async def update_container(self, container_id: str, resources: LinuxResources) -> None:
        """Set a container's limits, and resize the VM and limit the host cgroup as they require.

        Raises:
            NotFound: there is no such container.
            FailedPrecondition: it has stopped, or its sandbox has.
            InvalidArgument: a limit that no kernel would take.
            KataError: the VM cannot grow, or the agent refused; everything is as before.
        """
        container = self.container(container_id)
        self.require("update a container of", State.RUNNING)
        container.require_updatable()
        async with self._resources.change(container_id, resources):
            await container.update(resources)

    async def represent(self, container_id: str, pid: int) -> None:
        """A process of the host stands for a container: its cgroup shows the container's limits from now on."""
        await self._resources.show(container_id, pid)

    async def forget(self, container_id: str) -> None:
        """The process that stood for a container has ended."""
        if self.state is not State.STOPPED:
            await self._resources.hide(container_id)

    async def oom_events(self) -> AsyncIterator[str]:
        """Ids of containers in which the guest's OOM killer has killed something, until the guest is gone."""
        try:
            async for container_id in self.agent.oom_events():
                if container_id in self.containers:
                    self.events.tell(Event(Happening.OOM, container_id))
                    yield container_id
        except KataError as error:
            log.debug("no more out-of-memory events: %s", error)

    @property
    def is_failing(self) -> bool:
        """As `VirtualMachine.is_failing`: what a process has ended with says nothing then."""
        return self._guest.vm.is_failing

    async def why_ended(self) -> str:
        """Wait for the end of the VM; returns what ended it, in words."""
        exit_ = await self._guest.vm.wait()
        return self._guest.vm.why_ended or f"the VMM {exit_.how}"

    def describe(self) -> dict[str, Any]:
        """What is known of it, for JSON: docs/reference/cli.md has the fields."""
        size, vm = self._resources.size, self._guest.vm
        return {
            "id": self.id,
            **self._origin,
            "state": "running" if vm.pid else "stopped",
            "why_ended": vm.why_ended,
            "pid": os.getpid(),
            "vm": {
                "pid": vm.pid,
                "log_directory": str(vm.console.parent),
                "accelerator": self._accelerator,
                "vcpus": size.vcpus,
                "memory_mib": size.memory_mib,
            },
            "containers": [container.describe() for container in self.containers.values()],
            "interfaces": self._network.describe() if self._network else [],
            "devices": self._devices.describe(),
        }

    @cached_property
    def metrics(self) -> SandboxMetrics:
        """What answers scrapes, and remembers the scrape before."""
        # Imported with the first scrape: most sandboxes never have one.
        from kata.runtime.sandbox.metrics import SandboxMetrics

        virtio_fs = self._config.hypervisor.shared_fs == SHARE_VIRTIO_FS
        return SandboxMetrics(self._guest.vm, self.agent, self.containers, self.calls, virtio_fs=virtio_fs)

    @property
    def console(self) -> Path:
        """The log of the guest's console."""
        return self._guest.vm.console

    def living(self) -> list[Container]:
        """The containers that have not ended; the sandbox's own last, as others may be in its pid namespace."""
        found = [container for container in self.containers.values() if container.refresh() is not State.STOPPED]
        return sorted(found, key=lambda container: container.id == self.id)

    async def halt(self, grace_s: float) -> None:
        """End all containers and then the VM, for an operator.

        Front ends see the exits, as if the containers had ended by themselves, and release the rest by `stop`.

        Args:
            grace_s: seconds from SIGTERM to SIGKILL; with 0 the containers are killed at once, and the VM ends without
                a word to the guest.
        """
        self.is_halted = True
        for own in (False, True):
            ends = [_end(container, grace_s) for container in self.living() if (container.id == self.id) is own]
            await asyncio.gather(*ends)
        if grace_s:
            await flush_guest(self.what, self.agent)
        await self._guest.vm.stop()

    async def stop(self) -> list[str]:
        """End everything and release everything, whatever the guest says. Idempotent.

        Returns:
            What could not be released; it has been logged.
        """
        if self.state is not State.STOPPED:
            self.become(State.STOPPED)
            self.events.tell(Event(Happening.SANDBOX_STOPPED))
        return await self._teardown.run()


async def _end(container: Container, grace_s: float) -> None:
    """End a container as far as the guest lets it be; the VM's end does the rest."""
    try:
        async with asyncio.timeout(grace_s + _KILL_TIMEOUT_S):
            if container.state is State.PAUSED:
                await container.resume()
            if grace_s:
                await container.kill(signal.SIGTERM)
                await asyncio.wait({asyncio.ensure_future(container.wait())}, timeout=grace_s)
            if container.refresh() is not State.STOPPED:
                await container.kill(signal.SIGKILL)
                await container.wait()
    except (KataError, TimeoutError) as error:
        log.info("%s is left to the end of its VM: %s", container.what, str(error) or "it does not end")
