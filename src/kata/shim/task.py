"""containerd's Task service, versions 2 and 3, on top of a sandbox that knows nothing of containerd.

Source: containerd, api/runtime/task/v3/shim.proto.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import any_pb2, empty_pb2

from kata.errors import FailedPrecondition, KataError, NotFound, Unavailable, Unimplemented
from kata.metrics.durations import Durations
from kata.oci.spec import Bundle, load_bundle, parse_process, parse_resources
from kata.protocols.containerd import events_pb2, task_pb2, task_v2_pb2
from kata.protocols.processes import MAX_PID
from kata.runtime.config.annotations import apply_annotations
from kata.runtime.config.settings import Config
from kata.runtime.launch.sandbox_vm import Prepared
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.processes import MARKER
from kata.runtime.sandbox.container import Container
from kata.runtime.sandbox.events import Event, Happening
from kata.runtime.sandbox.process import Exit, Process
from kata.runtime.sandbox.sandbox import ContainerRequest, Sandbox
from kata.runtime.sandbox.start import start_sandbox
from kata.runtime.sandbox.states import State
from kata.runtime.storage.host_paths import RootfsMount
from kata.shim.config import load_config
from kata.shim.events import Publisher, pack, timestamp
from kata.shim.metrics import host_is_unified, metrics
from kata.shim.stand_in import StandIn, target_of
from kata.shim.stdio import open_stdio
from kata.ttrpc import CallContext
from kata.ttrpc.wire import varint

if TYPE_CHECKING:
    from kata.shim.params import ShimParams

log = logging.getLogger(__name__)

_EMPTY = empty_pb2.Empty()
_STATUS = {
    State.CREATING: task_pb2.CREATED,
    State.CREATED: task_pb2.CREATED,
    State.RUNNING: task_pb2.RUNNING,
    State.PAUSED: task_pb2.PAUSED,
    State.STOPPED: task_pb2.STOPPED,
}


def _details(exec_id: str) -> any_pb2.Any:
    """What containerd's shim for runc tells of an exec process: `containerd.runc.v1.ProcessDetails` {1 exec_id}."""
    name = exec_id.encode()
    return any_pb2.Any(type_url="containerd.runc.v1.ProcessDetails", value=b"\x0a" + varint(len(name)) + name)


async def _killed(container: Container) -> None:
    """Somebody has killed what stands for a container."""
    if container.refresh() is State.STOPPED:
        return
    log.warning("the process of container %s on this host was killed: the container is killed", container.id)
    try:
        await container.kill(signal.SIGKILL)
    except KataError as error:
        log.info("kill container %s: %s", container.id, error)


@dataclass(frozen=True)
class Io:
    """The stdio addresses of a process as containerd gave them; `State` returns them."""

    stdin: str
    stdout: str
    stderr: str
    terminal: bool


class TaskService:
    """The containers of one sandbox, as containerd's tasks.

    Args:
        ledger: the sandbox's; released by `close`.
        publisher: where events go.
        prepared: a VM that the sandbox may take over.

    Attributes:
        calls: durations of containerd's calls.
        ended: set when containerd has shut the sandbox down, or nothing is left to serve.
    """

    def __init__(
        self,
        params: ShimParams,
        ledger: Ledger,
        publisher: Publisher,
        prepared: Prepared | None = None,
    ) -> None:
        self.calls = Durations()
        self.ended = asyncio.Event()
        self._params = params
        self._ledger = ledger
        self._publisher = publisher
        self._prepared = prepared
        self._sandbox: Sandbox | None = None
        self._stand_ins: dict[str, StandIn] = {}
        self._represented: dict[str, asyncio.Task[None]] = {}
        self._asked = False
        self._creating = 0
        self._starting = asyncio.Lock()
        #: The call that starts the sandbox, while it does.
        self._starter: asyncio.Task[Any] | None = None
        self._closing = False
        self._bundles: dict[str, str] = {}
        self._io: dict[tuple[str, str], Io] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------------------------------------ life of a task

    async def create(self, request: task_v2_pb2.CreateTaskRequest, ctx: CallContext) -> task_v2_pb2.CreateTaskResponse:
        """Create a container, and its sandbox with the first one.

        Raises:
            Unimplemented: it is to be restored from a checkpoint, or its rootfs has a mount below another's root.
            KataError: bundle, streams, sandbox or container: as `load_bundle`, `open_stdio`, `start_sandbox` and
                `Sandbox.create_container`.
        """
        self._asked = True
        if request.checkpoint or request.parent_checkpoint:
            raise Unimplemented(f"container {request.id}: restoring from a checkpoint is not supported")
        bundle = load_bundle(Path(request.bundle))
        io = Io(request.stdin, request.stdout, request.stderr, request.terminal)
        for mount in request.rootfs:
            if mount.target:  # containerd 2: below the root of those before it
                raise Unimplemented(
                    f"container {request.id}: a rootfs mount with target {mount.target!a} is not supported"
                )
        rootfs = [RootfsMount(mount.type, mount.source, tuple(mount.options)) for mount in request.rootfs]
        # Before the VM: streams that are missing should not cost a launch.
        stdio = await self._open(request.id, io)
        self._creating += 1
        stand_in = None
        try:
            sandbox = await self._sandbox_for(bundle, request.options)
            stand_in = StandIn(self._ledger.directory, sandbox.pid)
            target = target_of(bundle.spec, self._stand_ins)
            container = await sandbox.create_container(ContainerRequest(request.id, bundle, stdio, rootfs, target))
            self._bundles[request.id] = request.bundle
        except BaseException:
            if stand_in:
                stand_in.end()
            stdio.close()
            raise
        finally:
            self._creating -= 1
        self._io[request.id, ""] = io
        self._stand_ins[request.id] = stand_in
        stand_in.watch(lambda: self._follow(_killed(container)))
        # Beside the start: the kernel takes its time.
        self._represented[request.id] = self._follow(sandbox.represent(request.id, stand_in.pid))
        self._publisher.publish(
            events_pb2.TaskCreate(
                container_id=request.id,
                bundle=request.bundle,
                rootfs=request.rootfs,
                io=events_pb2.TaskIO(stdin=io.stdin, stdout=io.stdout, stderr=io.stderr, terminal=io.terminal),
                pid=stand_in.pid,
            )
        )
        self._follow(self._tell_exit(container, container.init))
        return task_v2_pb2.CreateTaskResponse(pid=stand_in.pid)

    async def _sandbox_for(self, bundle: Bundle, options: any_pb2.Any) -> Sandbox:
        """Return the sandbox, which is started with the first container.

        Raises:
            FailedPrecondition: the sandbox has ended.
            Unavailable: it was shut down while it started.
            KataError: it cannot start, see `start_sandbox`.
        """
        async with self._starting:
            if self._sandbox is None:
                if self._ledger.fileno() < 0:
                    raise FailedPrecondition(f"sandbox {self._params.sandbox_id} has ended")
                loaded = load_config(options.SerializeToString() if options.value else self._params.options)
                for warning in loaded.warnings:
                    log.warning("%s", warning)
                config = apply_annotations(loaded.config, bundle.spec.get("annotations") or {})
                if config.runtime.enable_debug:
                    logging.getLogger().setLevel(logging.DEBUG)
                self._sandbox = await self._start_sandbox(bundle, config)
                self._sandbox.events.listen(self._tell)
                self._follow(self._tell_out_of_memory(self._sandbox))
            return self._sandbox

    async def _start_sandbox(self, bundle: Bundle, config: Config) -> Sandbox:
        prepared, self._prepared = self._prepared, None
        self._starter = asyncio.current_task()
        try:
            return await start_sandbox(
                self._params.sandbox_id,
                bundle,
                config,
                self._ledger,
                begun=self._params.begun,
                prepared=prepared,
                calls=self.calls,
            )
        except asyncio.CancelledError:
            if not self._closing or self._starter is None:
                raise
            self._starter.uncancel()
            raise Unavailable(f"sandbox {self._params.sandbox_id} was shut down while it started") from None
        finally:
            self._starter = None

    async def _open(self, container_id: str, io: Io) -> Any:
        environment = {
            "CONTAINER_ID": container_id,
            "CONTAINER_NAMESPACE": self._params.namespace,
            MARKER: self._ledger.directory,
        }
        return await open_stdio(io.stdin, io.stdout, io.stderr, terminal=io.terminal, environment=environment)

    async def start(self, request: task_v2_pb2.StartRequest, ctx: CallContext) -> task_v2_pb2.StartResponse:
        """Run a created container, or an exec process."""
        container = self._container(request.id)
        pid = self._pid(request.id)
        if request.exec_id:
            process = await container.start_exec(request.exec_id)
            event: Any = events_pb2.TaskExecStarted(container_id=request.id, exec_id=request.exec_id, pid=pid)
            self._publisher.publish(event)
            self._follow(self._tell_exit(container, process))
        else:
            assert self._sandbox is not None
            await self._sandbox.start_container(container)
            await self._is_represented(request.id)
            self._publisher.publish(events_pb2.TaskStart(container_id=request.id, pid=pid))
        return task_v2_pb2.StartResponse(pid=pid)

    async def delete(self, request: task_v2_pb2.DeleteRequest, ctx: CallContext) -> task_v2_pb2.DeleteResponse:
        """Delete a container or an exec process that has stopped."""
        container = self._container(request.id)
        pid = self._pid(request.id)
        if request.exec_id:
            exit_ = await container.delete_exec(request.exec_id)
        else:
            sandbox = self._sandbox
            assert sandbox is not None
            await self._is_represented(request.id)
            await sandbox.delete_container(request.id)
            assert container.init.exit is not None
            exit_ = container.init.exit
            self._bundles.pop(request.id, None)
            # Its execs have gone with it.
            self._io = {key: io for key, io in self._io.items() if key[0] != request.id}
            self._publisher.publish(
                events_pb2.TaskDelete(
                    container_id=request.id,
                    id=request.id,
                    pid=pid,
                    exit_status=exit_.status,
                    exited_at=timestamp(exit_.at_ns),
                )
            )
            if stand_in := self._stand_ins.pop(request.id, None):
                stand_in.end()
            self._represented.pop(request.id, None)
            await sandbox.forget(request.id)
        self._io.pop((request.id, request.exec_id), None)
        return task_v2_pb2.DeleteResponse(pid=pid, exit_status=exit_.status, exited_at=timestamp(exit_.at_ns))

    async def exec(self, request: task_v2_pb2.ExecProcessRequest, ctx: CallContext) -> empty_pb2.Empty:
        """Prepare an exec process; `start` runs it."""
        container = self._container(request.id)
        spec = parse_process(request.spec.value)
        io = Io(request.stdin, request.stdout, request.stderr, request.terminal)
        stdio = await self._open(request.id, io)
        try:
            container.add_exec(request.exec_id, spec, stdio)
        except BaseException:
            stdio.close()
            raise
        self._io[request.id, request.exec_id] = io
        self._publisher.publish(events_pb2.TaskExecAdded(container_id=request.id, exec_id=request.exec_id))
        return _EMPTY

    async def wait(self, request: task_v2_pb2.WaitRequest, ctx: CallContext) -> task_v2_pb2.WaitResponse:
        """Wait for the exit of a container or an exec process."""
        container = self._container(request.id)
        exit_ = await container.process(request.exec_id).wait()
        return task_v2_pb2.WaitResponse(exit_status=exit_.status, exited_at=timestamp(exit_.at_ns))

    async def kill(self, request: task_v2_pb2.KillRequest, ctx: CallContext) -> empty_pb2.Empty:
        """Send a signal to a process, or with `all` to the exec processes as well."""
        container = self._container(request.id)
        await container.kill(request.signal, exec_id=request.exec_id)
        if request.all and not request.exec_id:
            for process in list(container.execs.values()):
                if process.state is State.RUNNING:
                    await process.signal(request.signal)
        return _EMPTY

    async def pause(self, request: task_v2_pb2.PauseRequest, ctx: CallContext) -> empty_pb2.Empty:
        """Freeze a container."""
        await self._container(request.id).pause()
        return _EMPTY

    async def resume(self, request: task_v2_pb2.ResumeRequest, ctx: CallContext) -> empty_pb2.Empty:
        """Thaw a container."""
        await self._container(request.id).resume()
        return _EMPTY

    async def checkpoint(self, request: task_v2_pb2.CheckpointTaskRequest, ctx: CallContext) -> empty_pb2.Empty:
        """Refuse: checkpoints are not supported.

        Raises:
            Unimplemented: always.
        """
        raise Unimplemented(f"container {request.id}: checkpoints are not supported")

    async def update(self, request: task_v2_pb2.UpdateTaskRequest, ctx: CallContext) -> empty_pb2.Empty:
        """Set a container's limits."""
        self._container(request.id)
        sandbox = self._sandbox
        assert sandbox is not None
        await self._is_represented(request.id)
        await sandbox.update_container(request.id, parse_resources(request.resources.value))
        return _EMPTY

    # ------------------------------------------------------------------------------------------------------- streams

    async def resize_pty(self, request: task_v2_pb2.ResizePtyRequest, ctx: CallContext) -> empty_pb2.Empty:
        """Set the size of a process's terminal."""
        process = self._container(request.id).process(request.exec_id)
        await process.resize(rows=request.height, columns=request.width)
        return _EMPTY

    async def close_io(self, request: task_v2_pb2.CloseIORequest, ctx: CallContext) -> empty_pb2.Empty:
        """End a process's input."""
        process = self._container(request.id).process(request.exec_id)
        if request.stdin:
            await process.close_input()
        return _EMPTY

    # ----------------------------------------------------------------------------------------------------- questions

    async def state(self, request: task_v2_pb2.StateRequest, ctx: CallContext) -> task_v2_pb2.StateResponse:
        """The state of a container or an exec process."""
        container = self._container(request.id)
        container.refresh()
        process = container.process(request.exec_id)
        io = self._io[request.id, request.exec_id]
        answer = task_v2_pb2.StateResponse(
            id=request.exec_id or request.id,
            bundle=self._bundles[request.id],
            pid=self._pid(request.id),
            status=_STATUS[process.state if request.exec_id else container.state],
            stdin=io.stdin,
            stdout=io.stdout,
            stderr=io.stderr,
            terminal=io.terminal,
            exec_id=request.exec_id,
        )
        if process.exit is not None:
            answer.exit_status = process.exit.status
            answer.exited_at.CopyFrom(timestamp(process.exit.at_ns))
        return answer

    async def pids(self, request: task_v2_pb2.PidsRequest, ctx: CallContext) -> task_v2_pb2.PidsResponse:
        """A container's processes.

        The init process has the id that stands for it on this host, any other its id in the container plus MAX_PID:
        whoever looks for them on the host, as `docker top` does, must not find what has nothing to do with them.
        """
        container = self._container(request.id)
        answer = task_v2_pb2.PidsResponse(processes=[task_pb2.ProcessInfo(pid=self._pid(request.id))])
        try:
            others = await container.processes()
        except KataError as error:
            log.info("processes of container %s: %s", request.id, error)
            return answer
        for pid, exec_id in others:
            entry = answer.processes.add(pid=MAX_PID + pid)
            if exec_id is not None:
                entry.info.CopyFrom(_details(exec_id))
        return answer

    async def stats(self, request: task_v2_pb2.StatsRequest, ctx: CallContext) -> task_v2_pb2.StatsResponse:
        """A container's cgroup statistics."""
        stats = await self._container(request.id).stats()
        return task_v2_pb2.StatsResponse(stats=pack(metrics(stats, unified=host_is_unified())))

    async def connect(self, request: task_v2_pb2.ConnectRequest, ctx: CallContext) -> task_v2_pb2.ConnectResponse:
        """The ids of the shim and of the process that stands for the container."""
        return task_v2_pb2.ConnectResponse(shim_pid=os.getpid(), task_pid=self._pid(request.id), version="v2")

    async def shutdown(self, request: task_v2_pb2.ShutdownRequest, ctx: CallContext) -> empty_pb2.Empty:
        """End the sandbox once it has no containers, or at once with `now`."""
        if self._sandbox is not None and self._sandbox.containers and not request.now:
            return _EMPTY
        try:
            # Everything is released before the answer: containerd runs `delete` right after it.
            await self.close()
        finally:
            self.ended.set()
        return _EMPTY

    # ------------------------------------------------------------------------------------------------------- behind

    def _container(self, container_id: str) -> Container:
        if self._sandbox is None:
            raise NotFound(f"container {container_id} does not exist")
        return self._sandbox.container(container_id)

    async def _is_represented(self, *container_ids: str) -> None:
        if tasks := [self._represented[name] for name in container_ids if name in self._represented]:
            await asyncio.wait(tasks)

    def _pid(self, container_id: str) -> int:
        stand_in = self._stand_ins.get(container_id)
        return stand_in.pid if stand_in else 0

    def _follow(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _tell_exit(self, container: Container, process: Process) -> None:
        # By now: it may be deleted as soon as its exit can be asked for.
        pid = self._pid(container.id)
        exit_: Exit = await process.wait()
        container.refresh()
        self._publisher.publish(
            events_pb2.TaskExit(
                container_id=container.id,
                id=process.exec_id or container.id,
                pid=pid,
                exit_status=exit_.status,
                exited_at=timestamp(exit_.at_ns),
            )
        )

    def _tell(self, event: Event) -> None:
        """Publish what may happen without a request of containerd's: `kata pause` comes another way."""
        if event.type == Happening.CONTAINER_PAUSED:
            self._publisher.publish(events_pb2.TaskPaused(container_id=event.container))
        elif event.type == Happening.CONTAINER_RESUMED:
            self._publisher.publish(events_pb2.TaskResumed(container_id=event.container))

    async def _tell_out_of_memory(self, sandbox: Sandbox) -> None:
        async for container_id in sandbox.oom_events():
            self._publisher.publish(events_pb2.TaskOOM(container_id=container_id))

    def forgotten(self, *, connected: bool) -> bool:
        """Whether containerd, if it runs, no longer needs this shim.

        It shuts a shim down after the last container's deletion and after a creation that failed, unless it died before
        that. It keeps a connection to each shim that it knows, and removes the bundles of containers that it does not
        know.

        Args:
            connected: whether containerd has a connection to this shim.
        """
        if not self._asked:
            return not (connected or os.path.isdir(self._params.bundle))
        if not self._bundles:
            return not self._creating
        return not (connected or any(os.path.isdir(bundle) for bundle in self._bundles.values()))

    def end_unless_asked(self) -> None:
        """End if no container has been asked for yet."""
        if not self._asked:
            log.warning("no request for sandbox %s has come", self._params.sandbox_id)
            self.ended.set()

    async def close(self) -> None:
        """Stop the sandbox, or its start, and release everything. Idempotent."""
        self._closing = True
        if self._starter is not None:
            self._starter.cancel()
        async with self._starting, AsyncExitStack() as steps:
            for task in list(self._tasks):
                steps.callback(task.cancel)
            sandbox, self._sandbox = self._sandbox, None
            prepared, self._prepared = self._prepared, None
            for stand_in in self._stand_ins.values():
                steps.callback(stand_in.end)
            if sandbox is not None:
                steps.push_async_callback(sandbox.stop)
                steps.push_async_callback(self._is_represented, *self._represented)
                return
            steps.callback(self._ledger.release)
            if prepared is not None:
                steps.push_async_callback(prepared.discard)
