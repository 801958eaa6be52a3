"""One container: made all or nothing, run, watched, and taken apart again.

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
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from kata.agent import guestspec
from kata.agent.config import AgentConfig
from kata.agent.devices import environment
from kata.agent.devices.find import Finder
from kata.agent.oom import OomWatcher
from kata.agent.paths import Paths
from kata.agent.process import Process
from kata.agent.reaper import Reaper
from kata.agent.runtime import Runtime
from kata.agent.stdio import Stdio
from kata.agent.storage import Storages
from kata.errors import AlreadyExists, DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound
from kata.linux import cgroup, mount, mountinfo

if TYPE_CHECKING:
    from kata.protocols import agent_pb2

_log = logging.getLogger(__name__)

# A process that has ended and been waited for keeps its unread output this long; seconds.
_LINGER = 60.0
_FREEZE_TIMEOUT = 10.0
_CGROUP_TIMEOUT = 5.0
_POLL = 0.01
# A pod's own container and the first one in it.
_AHEAD = 2
# Between the end of a process and the beginning of the next one; seconds.
_NEXT_PAUSE = 0.02
# Kata's protocol has 0 for "wait for ever"; a process that survives this after SIGKILL will not go.
_REMOVE_TIMEOUT = 60.0


class State(Enum):
    """Where a container is in its life."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class Machinery:
    """What all containers of an agent use."""

    def __init__(
        self,
        paths: Paths,
        reaper: Reaper,
        runtime: Runtime,
        oom: OomWatcher,
        config: AgentConfig,
        devices: Finder | None = None,
    ) -> None:
        self.paths = paths
        self.reaper = reaper
        self.runtime = runtime
        self.oom = oom
        self.config = config
        self.devices = devices or Finder(config.hotplug_timeout)
        self._consoles = 0
        self._ahead: list[Stdio] = []

    def start_ahead(self) -> None:
        """Begin with the next few containers, whatever they will be. Where that fails, they begin when they come."""
        try:
            while len(self._ahead) < _AHEAD:
                self._ahead.append(self.begin(""))
        except OSError as error:
            _log.warning("no container is begun ahead: %s", error)

    def begin(self, container_id: str) -> Stdio:
        """Begin with a container, or with a process in the one that is named; the streams that it will have."""
        stdio = Stdio.open_pipes(self.config.container_pipe_size)
        try:
            self.runtime.start_ahead(stdio.streams, container_id)
        except BaseException:
            stdio.close()
            raise
        return stdio

    def open_stdio(self, process: Mapping[str, Any], *, ahead: bool = False) -> Stdio:
        """Streams as the OCI `process` wants them; `ahead`: those of a start ahead will do."""
        if not process.get("terminal"):
            return self._ahead.pop() if ahead and self._ahead else Stdio.open_pipes(self.config.container_pipe_size)
        self._consoles += 1
        os.makedirs(self.paths.run, mode=0o700, exist_ok=True)
        return Stdio.open_terminal(f"{self.paths.run}/console-{self._consoles}")


class Container:
    """A container; made by `create`. Calls that change it are serialised."""

    def __init__(self, container_id: str, machinery: Machinery, addresses: Mapping[str, str]) -> None:
        self.id = container_id
        self.bundle = f"{machinery.paths.base}/{container_id}"
        self.cgroup = f"{machinery.paths.cgroup}/{container_id}"
        self._machinery = machinery
        self._addresses = addresses
        self._processes: dict[str, Process] = {}
        self._lock = asyncio.Lock()
        self._held = contextlib.AsyncExitStack()
        self._started = False
        self._paused = False
        self._has_poststart = False
        #: The streams of a next process, which is begun when a container is seen to get more than one.
        self._next: Stdio | None = None

    @classmethod
    async def create(
        cls,
        container_id: str,
        spec: Mapping[str, Any],
        storages: tuple[Storages, list[agent_pb2.Storage]],
        namespaces: guestspec.Namespaces,
        machinery: Machinery,
        addresses: Mapping[str, str],
    ) -> Container:
        """Make a container whose first process waits to be started.

        Args:
            spec: OCI spec; `root.path` is a directory that is there when the storages are mounted.
            storages: the sandbox's storages, and what this container wants of them.
            addresses: of PCI devices that it was given, host to guest.

        Raises:
            AlreadyExists, InvalidArgument, FailedPrecondition, NotFound…: nothing is left behind.
        """
        self = cls(container_id, machinery, addresses)
        try:
            await self._create(spec, storages, namespaces)
        except BaseException:
            await self._held.aclose()
            raise
        return self

    async def _create(
        self,
        spec: Mapping[str, Any],
        storages: tuple[Storages, list[agent_pb2.Storage]],
        namespaces: guestspec.Namespaces,
    ) -> None:
        machinery = self._machinery
        try:
            os.mkdir(self.bundle, 0o711)
        except FileExistsError:
            raise AlreadyExists(f"container {self.id} exists already, or its name is taken") from None
        self._held.callback(_remove_tree, self.bundle)
        self._held.callback(storages[0].release, storages[0].acquire(storages[1], self.id))
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
        self._has_poststart = bool((finished.get("hooks") or {}).get("poststart"))
        _write_json(f"{self.bundle}/config.json", finished)
        # A hook sees the bundle's path, and what is started ahead has one of its own.
        stdio = machinery.open_stdio(finished.get("process") or {}, ahead=not finished.get("hooks"))
        self._held.callback(stdio.close)
        with machinery.reaper.adopting():
            self._held.push_async_callback(self._remove_cgroup)
            self._held.push_async_callback(machinery.runtime.delete, self.id)
            pid = await machinery.runtime.create(self.id, self.bundle, stdio.streams)
            self._adopt("", pid, stdio)
        await stdio.handed_over()
        machinery.oom.watch(self.id, self.cgroup)
        self._held.callback(machinery.oom.forget, self.id)

    def _translated(self, process: Mapping[str, Any]) -> dict[str, Any]:
        """An OCI process whose environment names PCI devices by their addresses here."""
        return {**process, "env": environment.translate(process.get("env") or (), self._addresses)}

    async def _remove_cgroup(self) -> None:
        """Remove what a runtime that was killed half-way has left; usually it is gone by now."""
        self.kill_all()
        deadline = time.monotonic() + _CGROUP_TIMEOUT
        while True:
            try:
                os.rmdir(self.cgroup)
            except FileNotFoundError:
                return
            except OSError:
                # Killed processes leave the group only when they have been waited for.
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_POLL)

    def _mount_rootfs(self, source: str) -> str:
        """Bind the root directory into the bundle, where the host cannot take it away any more."""
        if not source.startswith("/") or not os.path.isdir(source):
            raise InvalidArgument(f"container {self.id}: root path {source!r} is no directory in the guest")
        target = f"{self.bundle}/rootfs"
        os.mkdir(target, 0o755)
        try:
            mount.bind(source, target)
        except OSError as error:
            raise FailedPrecondition(f"container {self.id}: cannot mount its root: {error.strerror}") from error
        self._held.callback(mount.umount, target)
        return target

    def _adopt(self, exec_id: str, pid: int, stdio: Stdio) -> Process:
        """Take charge of a process that the runtime has just left behind."""
        name = f"process {exec_id} of container {self.id}" if exec_id else f"container {self.id}"
        exited = self._machinery.reaper.watch(pid)
        if exec_id:
            exited.add_done_callback(self._begin_next_soon)
        process = Process(name, pid, exited, stdio, lambda: self._machinery.oom.check(self.id))
        self._processes[exec_id] = process
        return process

    @property
    def state(self) -> State:
        if not self.process("").running:
            return State.STOPPED
        if self._paused:
            return State.PAUSED
        return State.RUNNING if self._started else State.CREATED

    def _require(self, *states: State) -> None:
        if self.state not in states:
            raise FailedPrecondition(f"container {self.id} is {self.state.value}")

    def process(self, exec_id: str) -> Process:
        """The process `exec_id`; "" or the container's own id is the first one.

        Raises:
            NotFound: there is none.
        """
        process = self._processes.get("" if exec_id == self.id else exec_id)
        if process is None:
            raise NotFound(f"container {self.id} has no process {exec_id}")
        return process

    async def start(self) -> None:
        """Let the first process run."""
        async with self._lock:
            self._require(State.CREATED)
            await self._machinery.runtime.start(self.id, hooks=self._has_poststart)
            self._started = True

    async def exec(self, exec_id: str, spec: Mapping[str, Any]) -> None:
        """Run one more process."""
        async with self._lock:
            former = self._processes.get(exec_id)
            if former and not former.running and exec_id:
                self._forget(exec_id, former)  # who asks for the id again is done with what had it
            if exec_id in self._processes or exec_id == self.id:
                raise AlreadyExists(f"container {self.id} has a process {exec_id} already")
            self._require(State.CREATED, State.RUNNING)
            stdio = self._take_next(spec) or self._machinery.open_stdio(spec)
            try:
                with self._machinery.reaper.adopting():
                    pid = await self._machinery.runtime.exec(self.id, self._translated(spec), stdio.streams)
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

    def _begin_next_soon(self, _: asyncio.Future[int]) -> None:
        """A process has ended, as a probe's does: the next one will come. First whoever waits for this one."""
        asyncio.get_running_loop().call_later(_NEXT_PAUSE, self._begin_next)

    def _begin_next(self) -> None:
        if self._next is None and self.state is State.RUNNING and not self._lock.locked():
            self._next = self._machinery.begin(self.id)

    def _drop_next(self) -> None:
        if self._next is not None:
            self._machinery.runtime.stop_ahead(self._next.streams)
            self._next.close()
            self._next = None

    async def wait(self, exec_id: str) -> int:
        """The exit code of a process; a process other than the first is forgotten some time after."""
        process = self.process(exec_id)
        code = await process.wait()
        if process is not self._processes.get(""):
            asyncio.get_running_loop().call_later(_LINGER, self._forget, exec_id, process)
        return code

    async def read(self, exec_id: str, stream: str, limit: int) -> bytes:
        """Up to `limit` bytes of "stdout" or "stderr"; b"" at the end. A terminal has no standard error."""
        process = self.process(exec_id)
        output = process.stdio.stdout if stream == "stdout" else process.stdio.stderr
        return await output.read(limit) if output else b""

    def _forget(self, exec_id: str, process: Process) -> None:
        if self._processes.get(exec_id) is process:
            del self._processes[exec_id]
            process.stdio.close()

    def signal(self, exec_id: str, number: int) -> None:
        """Send a signal; SIGKILL to the container as a whole reaches every process in it at once."""
        process = self.process(exec_id)
        if number == signal.SIGTERM and not exec_id:
            process.terminate()
        else:
            process.signal(number)
        if number == signal.SIGKILL and not exec_id:
            self.kill_all()

    def kill_all(self) -> None:
        """SIGKILL to everything in the container's cgroup, frozen or not."""
        try:
            cgroup.kill(self.cgroup)
        except FileNotFoundError:
            pass

    async def pause(self) -> None:
        """Freeze every process."""
        async with self._lock:
            self._require(State.RUNNING)
            await self._freeze(True)

    async def resume(self) -> None:
        """Let a paused container run again."""
        async with self._lock:
            self._require(State.PAUSED)
            await self._freeze(False)

    async def _freeze(self, frozen: bool) -> None:
        cgroup.set_frozen(self.cgroup, frozen)
        try:
            async with asyncio.timeout(_FREEZE_TIMEOUT):
                # The change is announced by inotify only, which is more machinery than a few polls are worth.
                while cgroup.is_frozen(self.cgroup) != frozen and self.process("").running:  # noqa: ASYNC110
                    await asyncio.sleep(_POLL)
        except BaseException as error:
            cgroup.set_frozen(self.cgroup, not frozen)
            if isinstance(error, TimeoutError):
                verb = "stop" if frozen else "go on"
                raise DeadlineExceeded(f"container {self.id} did not {verb} within {_FREEZE_TIMEOUT:g} s") from None
            raise
        self._paused = frozen

    async def update(self, resources: Mapping[str, Any]) -> None:
        """Change the limits to OCI `linux.resources`."""
        async with self._lock:
            self._require(State.CREATED, State.RUNNING, State.PAUSED)
            await self._machinery.runtime.update(self.id, resources)

    async def remove(self, timeout: float = 0) -> None:
        """Kill what runs and give everything back. `timeout` in seconds; 0 means Kata's "for ever", within reason.

        Raises:
            DeadlineExceeded: a process cannot be killed; the container stays.
        """
        async with self._lock:
            self._drop_next()
            self.kill_all()
            process = self.process("")
            if process.running:
                process.signal(signal.SIGKILL)
            try:
                await asyncio.wait_for(process.wait(), timeout or _REMOVE_TIMEOUT)
            except TimeoutError:
                raise DeadlineExceeded(
                    f"container {self.id} did not end within {timeout or _REMOVE_TIMEOUT:g} s"
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
