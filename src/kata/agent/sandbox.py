"""The sandbox: the containers of this virtual machine and what they share."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kata.agent import guesthooks
from kata.agent.container import Container, Machinery
from kata.agent.devices import specupdate
from kata.agent.devices.request import find_devices, find_storages
from kata.agent.guestspec import Namespaces
from kata.agent.storage import Storages
from kata.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from kata.linux import mount, namespaces
from kata.oci import cdi
from kata.oci.ids import validate_id

if TYPE_CHECKING:
    from kata.protocols import agent_pb2

_log = logging.getLogger(__name__)

_MODPROBE = "/sbin/modprobe"
_MODULE_TIMEOUT = 30.0
# Killed processes that are not gone by then hang in the kernel; seconds.
_HALT_TIMEOUT = 2.0
_MAX_HOSTNAME = 64


class Sandbox:
    """At most one is running per agent.

    Args:
        machinery: what containers use.
        owns_machine: whether this agent is PID 1, and hostname, kernel modules and /etc are its to change.
    """

    def __init__(self, machinery: Machinery, owns_machine: bool) -> None:
        self.id = ""
        self.running = False
        self.storages = Storages(machinery.paths)
        self._machinery = machinery
        self._owns_machine = owns_machine
        self._containers: dict[str, Container] = {}
        self._creating: set[str] = set()
        self._pinned: list[str] = []
        self._pid_owner: Container | None = None
        self._bound: list[str] = []
        self._hooks: dict[str, list[dict[str, Any]]] = {}

    async def create(self, request: agent_pb2.CreateSandboxRequest) -> None:
        """Prepare what the containers share.

        Raises:
            AlreadyExists: it runs already.
            InvalidArgument, FailedPrecondition: nothing is left behind.
        """
        if self.running:
            raise AlreadyExists(f"sandbox {self.id} is running already")
        if request.sandbox_id:
            validate_id(request.sandbox_id, "sandbox id")
        if len(request.hostname) > _MAX_HOSTNAME or "\0" in request.hostname:
            raise InvalidArgument(f"hostname has more than {_MAX_HOSTNAME} characters, or a NUL")
        self.id = request.sandbox_id
        self.running = True
        paths = self._machinery.paths
        try:
            for directory in (paths.sandbox, paths.shared, paths.namespaces):
                os.makedirs(directory, mode=0o755, exist_ok=True)
            if self._owns_machine and request.hostname:
                socket.sethostname(request.hostname)
            for module in request.kernel_modules:
                await self._load_module(module.name, module.parameters)
            self._make_namespaces(request.hostname)
            self.storages.acquire(await find_storages(request.storages, self._machinery.devices), "")
            # Afterwards: the path may be on one of them.
            self._hooks = guesthooks.find(request.guest_hook_path)
            # Systemd's machine-id(5): drawn now, so that machines from one template have different ones.
            self._provide("machine-id", f"{os.urandom(16).hex()}\n")
            if request.dns:
                self._provide("resolv.conf", "".join(f"{line}\n" for line in request.dns))
        except BaseException:
            self._release()
            raise

    async def _load_module(self, name: str, parameters: Sequence[str]) -> None:
        if not self._owns_machine:
            raise FailedPrecondition(f"this agent does not own its machine and loads no kernel module ({name})")
        if not name.replace("-", "_").replace("_", "").isalnum():
            raise InvalidArgument(f"{name!r} is no name of a kernel module")
        result = await self._machinery.reaper.run([_MODPROBE, "-v", name, *parameters], timeout=_MODULE_TIMEOUT)
        if result.status:
            raise FailedPrecondition(f"kernel module {name} cannot be loaded: {result.output.strip()}")

    def _make_namespaces(self, hostname: str) -> None:
        directory = self._machinery.paths.namespaces
        targets = {kind: f"{directory}/{kind}" for kind in ("ipc", "uts")}
        namespaces.make_pinned(targets, lambda: socket.sethostname(hostname) if hostname else None)
        self._pinned += targets.values()

    def _provide(self, name: str, content: str) -> None:
        """The guest's own file in /etc, whose root is read-only; what containers see in theirs comes from the host."""
        path = f"{self._machinery.paths.sandbox}/{name}"
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)
        if self._owns_machine:
            target = os.path.realpath(f"/etc/{name}")
            mount.bind(path, target, 0)
            self._bound.append(target)

    async def destroy(self) -> None:
        """Remove all containers and give everything back. What fails is logged: there is nobody to try again."""
        results = await asyncio.gather(
            *(container.remove() for container in self._containers.values()), return_exceptions=True
        )
        for result in results:
            if isinstance(result, Exception):
                _log.error("destroying the sandbox: %s", result)
        self._containers.clear()
        self._release()

    async def halt(self) -> None:
        """Kill every process and have what was written reach the host; the machine, which ends now, takes the rest."""
        for container in self._containers.values():
            container.kill_all()
        waits = [asyncio.ensure_future(container.process("").wait()) for container in self._containers.values()]
        if waits:
            await asyncio.wait(waits, timeout=_HALT_TIMEOUT)
        os.sync()
        self.running = False

    def _release(self) -> None:
        self.storages.release_all()
        while self._bound:
            mount.umount(self._bound.pop())
        while self._pinned:
            namespaces.unpin(self._pinned.pop())
        self._pid_owner = None
        self.running = False
        self.id = ""

    def container(self, container_id: str) -> Container:
        """The container `container_id`.

        Raises:
            NotFound: there is none.
        """
        container = self._containers.get(container_id)
        if container is None:
            raise NotFound(f"no container {container_id}")
        return container

    async def create_container(
        self,
        container_id: str,
        spec: Mapping[str, Any],
        storages: list[agent_pb2.Storage],
        devices: Sequence[agent_pb2.Device],
        sandbox_pidns: bool,
    ) -> None:
        """Make a container; all or nothing.

        Raises:
            FailedPrecondition: there is no sandbox.
            AlreadyExists, InvalidArgument…: see Container.create.
        """
        validate_id(container_id, "container id")
        if not self.running:
            raise FailedPrecondition(f"container {container_id} needs a sandbox first")
        if container_id in self._containers or container_id in self._creating:
            raise AlreadyExists(f"container {container_id} exists already")
        self._creating.add(container_id)
        try:
            storages = await find_storages(storages, self._machinery.devices)
            found = await find_devices(devices, self._machinery.devices)
            spec = await self._resolve_names(spec)
            spec = guesthooks.add(specupdate.update(spec, found.updates, found.nodes), self._hooks)
            shared = self._namespaces(sandbox_pidns)
            container = await Container.create(
                container_id, spec, (self.storages, storages), shared, self._machinery, found.addresses
            )
        finally:
            self._creating.discard(container_id)
        self._containers[container_id] = container
        self._pin_pid_namespace(container)

    async def _resolve_names(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """Give a container the devices of this guest that it names; what they are may take its time to be said."""
        names = cdi.wanted(spec.get("annotations") or {})
        if not names:
            return spec
        edits = await self._machinery.devices.wait(lambda: cdi.find(names), f"CDI device {', '.join(names)}")
        return cdi.apply(spec, edits)

    def _namespaces(self, sandbox_pidns: bool) -> Namespaces:
        directory = self._machinery.paths.namespaces
        pid = f"{directory}/pid"
        return Namespaces(
            ipc=f"{directory}/ipc",
            uts=f"{directory}/uts",
            network=f"/proc/{os.getpid()}/ns/net",
            pid=pid if sandbox_pidns and self._pid_owner and self._pid_owner.process("").running else "",
        )

    def _pin_pid_namespace(self, container: Container) -> None:
        """The first container's pid namespace is the one that others join when the pod shares processes.

        It dies with its first process, so another container takes over when that has ended.
        """
        target = f"{self._machinery.paths.namespaces}/pid"
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
        """Remove a container; see Container.remove."""
        await self.container(container_id).remove(timeout)
        self._containers.pop(container_id, None)

    @property
    def containers(self) -> Sequence[Container]:
        return list(self._containers.values())
