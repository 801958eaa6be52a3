"""The sandbox: the containers of this guest and what they share."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kata.agent import guesthooks
from kata.agent.container import Container
from kata.agent.context import AgentContext
from kata.agent.devices import specupdate
from kata.agent.devices.request import find_devices, find_storages
from kata.agent.guestspec import Namespaces, pids_of
from kata.agent.log import name_sandbox
from kata.agent.storage import Storages
from kata.agent.tracing import step
from kata.errors import AlreadyExists, DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound
from kata.linux import mount, namespaces
from kata.oci import cdi
from kata.oci.ids import validate_id
from kata.oci.spec import MAX_HOSTNAME

if TYPE_CHECKING:
    from kata.protocols import agent_pb2

log = logging.getLogger(__name__)

_MODPROBE = "/sbin/modprobe"
_MODPROBE_TIMEOUT_S = 30.0
#: Killed processes that are not gone by then hang in the kernel.
_HALT_TIMEOUT_S = 2.0
#: Seconds for what is on file systems that the host does not know: a container may have mounted some.
_SYNC_TIMEOUT_S = 2.0


class Sandbox:
    """At most one is running per agent.

    Args:
        agent: what containers use.
        is_init: whether this agent is PID 1, so that hostname, kernel modules and /etc are its to change.

    Attributes:
        id: the sandbox's; "" if none is running.
        running: whether there is one.
        storages: its mounts.
    """

    def __init__(self, agent: AgentContext, is_init: bool) -> None:
        self.id = ""
        self.running = False
        self.storages = Storages(agent.paths, agent.reserve)
        self._agent = agent
        self._owns_guest = is_init
        self._containers: dict[str, Container] = {}
        self._creating: set[str] = set()
        self._pinned: list[str] = []
        self._pid_owner: Container | None = None
        self._bound: list[str] = []
        self._hooks: dict[str, list[dict[str, Any]]] = {}

    async def create(self, request: agent_pb2.CreateSandboxRequest) -> None:
        """Prepare what the containers share. A failure leaves nothing behind.

        Raises:
            AlreadyExists: it is already running.
            InvalidArgument: a name, module or storage of the request is invalid.
            DeadlineExceeded: a device of a storage does not appear.
            FailedPrecondition: a mount fails, or a module cannot be loaded.
        """
        if self.running:
            raise AlreadyExists(f"sandbox {self.id} is already running")
        if request.sandbox_id:
            validate_id(request.sandbox_id, "sandbox id")
        if (length := len(request.hostname.encode())) > MAX_HOSTNAME:
            raise InvalidArgument(f"hostname is {length} bytes long; the maximum is {MAX_HOSTNAME}")
        if "\0" in request.hostname:
            raise InvalidArgument(f"invalid hostname {request.hostname!r}")
        self.id = request.sandbox_id
        name_sandbox(self.id)
        self.running = True
        paths = self._agent.paths
        try:
            for directory in (paths.sandbox, paths.shared, paths.namespaces):
                os.makedirs(directory, mode=0o755, exist_ok=True)
            if self._owns_guest and request.hostname:
                socket.sethostname(request.hostname)
            for module in request.kernel_modules:
                await self._load_module(module.name, module.parameters)
            self._make_namespaces(request.hostname)
            with step("storages"):
                await self.storages.acquire(await find_storages(request.storages, self._agent.devices), "")
            # After the storages: the path may be on one of them.
            self._hooks = guesthooks.find(request.guest_hook_path)
            # machine-id(5): drawn now, so that VMs restored from one template have different ones.
            self._provide("machine-id", f"{os.urandom(16).hex()}\n")
            if request.dns:
                self._provide("resolv.conf", "".join(f"{line}\n" for line in request.dns))
        except BaseException:
            await self._release()
            raise

    async def _load_module(self, name: str, parameters: Sequence[str]) -> None:
        if not self._owns_guest:
            raise FailedPrecondition(f"cannot load kernel module {name}: the agent is not PID 1")
        if not name.replace("-", "_").replace("_", "").isalnum():
            raise InvalidArgument(f"invalid kernel module name {name!r}")
        result = await self._agent.reaper.run([_MODPROBE, "-v", name, *parameters], timeout=_MODPROBE_TIMEOUT_S)
        if result.status:
            raise FailedPrecondition(f"cannot load kernel module {name}: {result.output.strip()}")

    def _make_namespaces(self, hostname: str) -> None:
        directory = self._agent.paths.namespaces
        targets = {kind: f"{directory}/{kind}" for kind in ("ipc", "uts")}
        namespaces.make_pinned(targets, lambda: socket.sethostname(hostname) if hostname else None)
        self._pinned += targets.values()

    def _provide(self, name: str, content: str) -> None:
        """Provide a file in the guest's /etc, which is read-only; containers get theirs from the host."""
        path = f"{self._agent.paths.sandbox}/{name}"
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)
        if self._owns_guest:
            target = os.path.realpath(f"/etc/{name}")
            mount.bind(path, target, 0)
            self._bound.append(target)

    async def destroy(self) -> None:
        """Remove all containers and release everything. Failures are logged, as nothing would be retried."""
        results = await asyncio.gather(
            *(container.remove() for container in self._containers.values()), return_exceptions=True
        )
        for result in results:
            if isinstance(result, Exception):
                log.error("destroying the sandbox: %s", result)
        self._containers.clear()
        await self._release()

    async def halt(self) -> None:
        """Kill every process and flush what was written to the host; the rest goes with the VM, which ends now.

        Raises:
            DeadlineExceeded: not all that was written is on the host.
        """
        for container in self._containers.values():
            container.kill_all()
        waits = [asyncio.ensure_future(container.process("").wait()) for container in self._containers.values()]
        if waits:
            await asyncio.wait(waits, timeout=_HALT_TIMEOUT_S)
        flushed = await self.storages.flush()
        await asyncio.wait({asyncio.get_running_loop().run_in_executor(None, os.sync)}, timeout=_SYNC_TIMEOUT_S)
        self.running = False
        if not flushed:
            raise DeadlineExceeded("not all that was written is on the host")

    async def _release(self) -> None:
        await self.storages.release_all()
        while self._bound:
            mount.umount(self._bound.pop())
        while self._pinned:
            namespaces.unpin(self._pinned.pop())
        self._pid_owner = None
        self.running = False
        self.id = ""
        name_sandbox("")

    def container(self, container_id: str) -> Container:
        """The container `container_id`.

        Raises:
            NotFound: there is none.
        """
        container = self._containers.get(container_id)
        if container is None:
            raise NotFound(f"container {container_id} does not exist")
        return container

    async def create_container(
        self,
        container_id: str,
        spec: Mapping[str, Any],
        storages: list[agent_pb2.Storage],
        devices: Sequence[agent_pb2.Device],
        sandbox_pidns: bool,
    ) -> None:
        """Create a container, all or nothing.

        Args:
            container_id: its id.
            spec: the OCI spec, with the host's device numbers.
            storages: to be mounted for it.
            devices: to be found, and put into its spec.
            sandbox_pidns: whether it joins the sandbox's pid namespace.

        Raises:
            InvalidArgument: the id, the spec, a storage or a device is invalid.
            FailedPrecondition: there is no sandbox, or a mount or crun failed.
            AlreadyExists: the id is taken.
            DeadlineExceeded: a device does not appear.
            NotFound: the program does not exist in the container.
        """
        validate_id(container_id, "container id")
        if not self.running:
            raise FailedPrecondition(f"cannot create container {container_id}: no sandbox is running")
        if container_id in self._containers or container_id in self._creating:
            raise AlreadyExists(f"container {container_id} already exists")
        self._creating.add(container_id)
        try:
            with step("devices"):
                storages = await find_storages(storages, self._agent.devices)
                found = await find_devices(devices, self._agent.devices)
            spec = await self._resolve_names(spec)
            spec = guesthooks.add(specupdate.update(spec, found.updates, found.nodes), self._hooks)
            shared = self._namespaces(spec, sandbox_pidns)
            container = await Container.create(
                container_id, spec, (self.storages, storages), shared, self._agent, found.addresses
            )
        finally:
            self._creating.discard(container_id)
        self._containers[container_id] = container
        self._pin_pid_namespace(container)

    async def _resolve_names(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """Give a container the CDI devices of this guest that it names; their specifications may appear late."""
        names = cdi.wanted(spec.get("annotations") or {})
        if not names:
            return spec
        edits = await self._agent.devices.wait(lambda: cdi.find(names), f"CDI device {', '.join(names)}")
        return cdi.apply(spec, edits)

    def _namespaces(self, spec: Mapping[str, Any], sandbox_pidns: bool) -> Namespaces:
        directory = self._agent.paths.namespaces
        pid = ""
        if target := pids_of(spec):
            process = self.container(target).process("")
            if not process.running:
                raise FailedPrecondition(f"container {target}, whose pid namespace is to be joined, has ended")
            pid = f"/proc/{process.pid}/ns/pid"
        elif sandbox_pidns and self._pid_owner and self._pid_owner.process("").running:
            pid = f"{directory}/pid"
        return Namespaces(
            ipc=f"{directory}/ipc", uts=f"{directory}/uts", network=f"/proc/{os.getpid()}/ns/net", pid=pid
        )

    def _pin_pid_namespace(self, container: Container) -> None:
        """The first container's pid namespace is the one that others join when the pod shares processes.

        It dies with its init process, so another container takes over when that has ended.
        """
        target = f"{self._agent.paths.namespaces}/pid"
        process = container.process("")
        if not process.running or (self._pid_owner and self._pid_owner.process("").running):
            return
        if target in self._pinned:
            self._pinned.remove(target)
            namespaces.unpin(target)
        namespaces.pin(f"/proc/{process.pid}/ns/pid", target)
        self._pinned.append(target)
        self._pid_owner = container

    async def remove_container(self, container_id: str, timeout: float) -> None:
        """Remove a container.

        Args:
            container_id: its id.
            timeout: see `Container.remove`.

        Raises:
            NotFound: there is none.
            DeadlineExceeded: its init process survives SIGKILL.
        """
        await self.container(container_id).remove(timeout)
        self._containers.pop(container_id, None)

    @property
    def containers(self) -> Sequence[Container]:
        """All containers, oldest first."""
        return list(self._containers.values())
