"""One container: created all or nothing, run, watched and removed.

What a container holds is pushed on a stack as it is acquired; a failed creation and a removal both unwind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from kata.agent import guestspec
from kata.agent.context import AgentContext
from kata.agent.devices import environment
from kata.agent.process import Process, status
from kata.agent.process_table import ProcessTable
from kata.agent.stdio import Stdio
from kata.agent.storage import Storages
from kata.agent.tracing import step
from kata.errors import AlreadyExists, DeadlineExceeded, FailedPrecondition, InvalidArgument
from kata.linux import cgroup, mount, mountinfo
from kata.loop.off import off_loop

if TYPE_CHECKING:
    from kata.protocols import agent_pb2

log = logging.getLogger(__name__)

_FREEZE_TIMEOUT_S = 10.0
_CGROUP_TIMEOUT_S = 5.0
_POLL_S = 0.01
#: Between the end of a process and pre-spawning the next one, so that waiters for the exit come first.
_PRESPAWN_DELAY_S = 0.02
#: For a timeout of 0, Kata's "wait for ever": a process that survives SIGKILL for this long hangs in the kernel.
_REMOVE_TIMEOUT_S = 60.0


class State(Enum):
    """The life cycle of a container (runtime-spec, runtime.md, "State", and Kata's PAUSED)."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class Container(ProcessTable):
    """A container; made by `create`. Calls that change it are serialised."""

    def __init__(
        self, container_id: str, agent: AgentContext, addresses: Mapping[str, str], storages: Storages
    ) -> None:
        super().__init__(container_id, f"container {container_id}")
        self.bundle = f"{agent.paths.base}/{container_id}"
        self.cgroup = f"{agent.paths.cgroup}/{container_id}"
        self._agent = agent
        self._addresses = addresses
        self._storages = storages
        self._lock = asyncio.Lock()
        self._held = contextlib.AsyncExitStack()
        self._started = False
        self._paused = False
        self._has_poststart = False
        #: The streams of a pre-spawned process, which a container has once it had an exec.
        self._next: Stdio | None = None

    @classmethod
    async def create(
        cls,
        container_id: str,
        spec: Mapping[str, Any],
        storages: tuple[Storages, Sequence[agent_pb2.Storage]],
        namespaces: guestspec.Namespaces,
        agent: AgentContext,
        addresses: Mapping[str, str],
    ) -> Container:
        """Create a container whose init process waits to be started. A failed creation leaves nothing behind.

        Args:
            container_id: a valid id.
            spec: OCI spec; `root.path` is a directory that exists when the storages are mounted.
            storages: the sandbox's storages, and those of them that this container asks for.
            namespaces: those of the sandbox that it joins.
            agent: what it uses.
            addresses: of the PCI devices that it was given, host to guest.

        Raises:
            AlreadyExists: the id is taken.
            InvalidArgument: the spec or a storage is invalid.
            FailedPrecondition: a mount or crun failed.
            NotFound: the program does not exist in the container.
        """
        self = cls(container_id, agent, addresses, storages[0])
        try:
            await self._create(spec, storages[1], namespaces)
        except BaseException:
            await self._held.aclose()
            raise
        return self

    async def _create(
        self,
        spec: Mapping[str, Any],
        storages: Sequence[agent_pb2.Storage],
        namespaces: guestspec.Namespaces,
    ) -> None:
        agent = self._agent
        try:
            os.mkdir(self.bundle, 0o711)
        except FileExistsError:
            raise AlreadyExists(f"container {self.id} already exists, or its id is reserved") from None
        # What an overlay in it has taken may be a lot.
        self._held.push_async_callback(off_loop, _remove_tree, self.bundle)
        # The host has unplugged what an earlier container needed.
        agent.reserve.refresh()
        with step("storages"):
            self._held.push_async_callback(self._storages.release, await self._storages.acquire(storages, self.id))
        rootfs = self._mount_rootfs(str((spec.get("root") or {}).get("path") or ""))
        finished = guestspec.finish(
            spec,
            rootfs=rootfs,
            cgroup=self.cgroup.removeprefix("/sys/fs/cgroup"),
            namespaces=namespaces,
            root_device=_root_device(),
        )
        if "process" in finished:
            finished["process"] = self._translated(finished["process"])
        finished["mounts"] = [self._fitted(entry) for entry in finished.get("mounts") or ()]
        finished, quota = guestspec.without_quota(finished)
        self._has_poststart = bool((finished.get("hooks") or {}).get("poststart"))
        _write_json(f"{self.bundle}/config.json", finished)
        # Hooks get the bundle's path, and a pre-spawned container has a different one.
        stdio = agent.open_stdio(finished.get("process") or {}, prespawned=not finished.get("hooks"))
        self._held.callback(stdio.close)
        with agent.reaper.adopting():
            self._held.push_async_callback(self._remove_cgroup)
            self._held.push_async_callback(agent.runtime.delete, self.id)
            with step("crun create"):
                pid = await agent.runtime.create(self.id, self.bundle, stdio.streams)
            self._adopt("", pid, stdio)
        self._limit_cpu(quota)
        await stdio.handed_over()
        agent.oom.watch(self.id, self.cgroup)
        self._held.callback(agent.oom.forget, self.id)

    def _translated(self, process: Mapping[str, Any]) -> dict[str, Any]:
        """Return an OCI process whose environment has the guest's addresses of PCI devices."""
        return {**process, "env": environment.translate(process.get("env") or (), self._addresses)}

    def _limit_cpu(self, files: Mapping[str, str]) -> None:
        try:
            for name, text in files.items():
                cgroup.write(self.cgroup, name, text)
        except OSError as error:
            raise FailedPrecondition(f"container {self.id}: cannot limit its CPU time: {error.strerror}") from error

    def _fitted(self, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a mount of the spec, a tmpfs with a size that leaves something to others."""
        if entry.get("type") != "tmpfs":
            return entry
        options, promised = self._agent.reserve.fit(entry.get("options") or ())
        self._held.callback(self._agent.reserve.give_back, promised)
        return {**entry, "options": options}

    async def _remove_cgroup(self) -> None:
        """Remove the cgroup if a killed runtime has left it; usually it is gone by now.

        Raises:
            OSError: it is still in use at the deadline.
        """
        self.kill_all()
        deadline = time.monotonic() + _CGROUP_TIMEOUT_S
        while True:
            try:
                os.rmdir(self.cgroup)
            except FileNotFoundError:
                return
            except OSError:
                # Killed processes leave the cgroup only when they have been waited for.
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_POLL_S)

    def _mount_rootfs(self, source: str) -> str:
        """Bind-mount the root directory into the bundle, where the host cannot replace it.

        Raises:
            InvalidArgument: it is not a directory.
            FailedPrecondition: it cannot be mounted.
        """
        if not source.startswith("/") or not os.path.isdir(source):
            raise InvalidArgument(f"container {self.id}: root path {source!r} is not a directory in the guest")
        target = f"{self.bundle}/rootfs"
        os.mkdir(target, 0o755)
        try:
            mount.bind(source, target)
        except OSError as error:
            raise FailedPrecondition(f"container {self.id}: cannot mount its root: {error.strerror}") from error
        self._held.callback(mount.umount, target)
        return target

    def _adopt(self, exec_id: str, pid: int, stdio: Stdio) -> Process:
        """Take over a process that the runtime has just started."""
        name = f"process {exec_id} of container {self.id}" if exec_id else f"container {self.id}"
        exited = self._agent.reaper.watch(pid)
        if exec_id:
            exited.add_done_callback(self._prespawn_soon)
        process = Process(name, pid, exited, stdio, lambda: self._before_exit(exec_id))
        self._processes[exec_id] = process
        return process

    def _before_exit(self, exec_id: str) -> None:
        """A process has ended, which nobody knows yet."""
        self._agent.oom.check(self.id)
        if not exec_id:
            # Where the sandbox's containers share a pid namespace the kernel leaves the others, which hold the streams.
            self.kill_all()

    @property
    def state(self) -> State:
        """Where it is in its life cycle."""
        if not self.process("").running:
            return State.STOPPED
        if self._paused:
            return State.PAUSED
        return State.RUNNING if self._started else State.CREATED

    @property
    def root(self) -> str:
        """Its root directory as it sees it itself, with its mounts; once it has ended, what is left of it."""
        return f"/proc/{self.process('').pid}/root" if self.process("").running else f"{self.bundle}/rootfs"

    def _require(self, *states: State) -> None:
        if self.state not in states:
            raise FailedPrecondition(f"container {self.id} is {self.state.value}")

    async def start(self) -> None:
        """Let the init process run its program.

        Raises:
            FailedPrecondition: it was started before, or has ended.
        """
        async with self._lock:
            self._require(State.CREATED)
            with step("crun start"):
                await self._agent.runtime.start(self.id, hooks=self._has_poststart)
            self._started = True

    @contextlib.contextmanager
    def _lifted_quota(self) -> Iterator[None]:
        """Lift the CPU quota while the runtime works in the container: with 1 % of a CPU that would take seconds.

        No longer than that, and not for the init process: programs size themselves by the quota.
        """
        limit = cgroup.read(self.cgroup, "cpu.max").strip()
        quota, _, period = limit.partition(" ")
        if quota in ("", "max"):
            yield
            return
        cgroup.write(self.cgroup, "cpu.max", f"max {period}")
        try:
            yield
        finally:
            cgroup.write(self.cgroup, "cpu.max", limit)

    async def exec(self, exec_id: str, spec: Mapping[str, Any]) -> None:
        """Run one more process.

        Args:
            exec_id: its id, valid.
            spec: the OCI `process`.

        Raises:
            AlreadyExists: a running process has the id.
            FailedPrecondition: the container is stopped or paused.
            NotFound, PermissionDenied: the program cannot be executed.
        """
        async with self._lock:
            former = self._processes.get(exec_id)
            if former and not former.running and exec_id:
                self._forget(exec_id, former)  # the id is reused: nobody will read its output
            if exec_id in self._processes or exec_id == self.id:
                raise AlreadyExists(f"process {exec_id} already exists in container {self.id}")
            self._require(State.CREATED, State.RUNNING)
            stdio = self._take_next(spec) or self._agent.open_stdio(spec)
            try:
                with self._agent.reaper.adopting(), self._lifted_quota():
                    with step("crun exec"):
                        pid = await self._agent.runtime.exec(self.id, self._translated(spec), stdio.streams)
                    process = self._adopt(exec_id, pid, stdio)
                try:
                    await stdio.handed_over()
                except BaseException:
                    if process.running:
                        process.signal(signal.SIGKILL)
                    self._forget(exec_id, process)
                    raise
            except BaseException:
                stdio.close()
                raise

    def _take_next(self, spec: Mapping[str, Any]) -> Stdio | None:
        if spec.get("terminal"):
            return None
        taken, self._next = self._next, None
        return taken

    def _prespawn_soon(self, _: asyncio.Future[int]) -> None:
        """An exec has ended: if it was a probe's, the next one will come."""
        asyncio.get_running_loop().call_later(_PRESPAWN_DELAY_S, self._prespawn)

    def _prespawn(self) -> None:
        if self._next is None and self.state is State.RUNNING and not self._lock.locked():
            self._next = self._agent.prespawn(self.id)

    def _drop_next(self) -> None:
        if self._next is not None:
            self._agent.runtime.discard(self._next.streams)
            self._next.close()
            self._next = None

    def signal(self, exec_id: str, number: int) -> None:
        """Send a signal; SIGKILL to the init process reaches every process of the container at once.

        Raises:
            InvalidArgument: the signal does not exist.
            NotFound: the process does not exist, or has ended.
        """
        process = self.process(exec_id)
        if number == signal.SIGTERM and not exec_id:
            process.terminate()
        else:
            process.signal(number)
        if number == signal.SIGKILL and not exec_id:
            self.kill_all()

    def kill_all(self) -> None:
        """Kill everything in the container's cgroup, frozen or not."""
        try:
            cgroup.kill(self.cgroup)
        except FileNotFoundError:
            pass

    def processes(self) -> list[tuple[int, str | None]]:
        """Its processes, as `kata.protocols.processes.encode_list` takes them."""
        ours = {process.pid: exec_id for exec_id, process in self._processes.items() if process.running}
        # The last number is the id in the namespace that the process is in, which is the container's.
        numbers = ((pid, status(pid, "NSpid").split()[-1:]) for pid in cgroup.processes(self.cgroup))
        return sorted(((int(own[0]), ours.get(pid)) for pid, own in numbers if own), key=lambda entry: entry[0])

    async def pause(self) -> None:
        """Freeze every process, and flush: whoever pauses a container may look at its files.

        Raises:
            FailedPrecondition: it is not running.
            DeadlineExceeded: a process does not freeze; all keep running.
        """
        async with self._lock:
            self._require(State.RUNNING)
            await self._freeze(True)
            await self._storages.flush()

    async def resume(self) -> None:
        """Thaw a paused container.

        Raises:
            FailedPrecondition: it is not paused.
            DeadlineExceeded: a process does not thaw.
        """
        async with self._lock:
            self._require(State.PAUSED)
            await self._freeze(False)

    async def _freeze(self, frozen: bool) -> None:
        cgroup.set_frozen(self.cgroup, frozen)
        try:
            async with asyncio.timeout(_FREEZE_TIMEOUT_S):
                # The kernel reports the change by inotify only; a few polls are simpler.
                while cgroup.is_frozen(self.cgroup) != frozen and self.process("").running:  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)
        except BaseException as error:
            cgroup.set_frozen(self.cgroup, not frozen)
            if isinstance(error, TimeoutError):
                verb = "freeze" if frozen else "thaw"
                raise DeadlineExceeded(f"container {self.id} did not {verb} within {_FREEZE_TIMEOUT_S:g} s") from None
            raise
        self._paused = frozen

    async def update(self, resources: Mapping[str, Any]) -> None:
        """Change the limits to OCI `linux.resources`.

        Raises:
            FailedPrecondition: it is stopped, or crun refuses.
        """
        async with self._lock:
            self._require(State.CREATED, State.RUNNING, State.PAUSED)
            await self._agent.runtime.update(self.id, resources)

    async def remove(self, timeout: float = 0) -> None:
        """Kill all processes and release everything.

        Args:
            timeout: seconds that the init process may take to end; 0, Kata's "for ever", means a minute.

        Raises:
            DeadlineExceeded: the init process survives SIGKILL; the container is kept.
        """
        async with self._lock:
            self._drop_next()
            self.kill_all()
            process = self.process("")
            if process.running:
                process.signal(signal.SIGKILL)
            try:
                await asyncio.wait_for(process.wait(), timeout or _REMOVE_TIMEOUT_S)
            except TimeoutError:
                raise DeadlineExceeded(
                    f"container {self.id} did not end within {timeout or _REMOVE_TIMEOUT_S:g} s"
                ) from None
            for exec_id, other in list(self._processes.items()):
                if exec_id:
                    self._forget(exec_id, other)
            await self._held.aclose()


def _root_device() -> tuple[int, int] | None:
    device = os.stat("/").st_dev
    return (os.major(device), os.minor(device)) if os.major(device) else None


def _write_json(path: str, content: Mapping[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)


def _remove_tree(directory: str) -> None:
    """Remove a bundle, but never through something that is still mounted in it."""
    for point in mountinfo.points_below(directory):
        mount.umount(point)
    shutil.rmtree(directory)
