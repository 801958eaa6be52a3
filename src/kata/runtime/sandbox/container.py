"""A container in a sandbox: its init process, its exec processes, its files."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from kata.errors import AlreadyExists, FailedPrecondition, KataError, NotFound, Unavailable
from kata.loop.off import off_loop
from kata.oci import convert, edit, left_out
from kata.oci.ids import validate_id
from kata.oci.spec import LinuxResources
from kata.oci.spec import Process as ProcessSpec
from kata.protocols import agent_pb2
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.launch.timings import Timings
from kata.runtime.sandbox.events import Event, Events, Happening
from kata.runtime.sandbox.process import Exit, Process
from kata.runtime.sandbox.states import Lifecycle, State
from kata.runtime.sandbox.stdio import Stdio
from kata.runtime.storage.container_files import ContainerPlan
from kata.runtime.storage.shared_tree import SharedTree

if TYPE_CHECKING:
    from kata.runtime.sandbox.hooks import HostHooks

log = logging.getLogger(__name__)

#: Seconds for the guest to remove a container whose processes have been killed.
REMOVE_TIMEOUT_S = 10.0
#: Seconds for a container to end after SIGKILL: one of its processes may wait for a slow disk, or the guest for a CPU.
KILL_TIMEOUT_S = 120.0


class Container(Lifecycle):
    """One container, created in the guest.

    Args:
        agent: of its sandbox's guest.
        share: its sandbox's shared tree.
        files: what of it is mounted there.
        stdio: its init process's streams, owned from now on.
        timings: where its phases are recorded.
        hooks: those that run on the host; None if it has none.
        disks: what keeps those that its root is made of; None if there are none.
        process_spec: of its init process, as its spec has it.
        events: where it is told what happens.
        name: what its container engine calls it; "" if it does not say.
        does_not_end: called with its name when the guest has not ended it KILL_TIMEOUT_S after SIGKILL.
    """

    def __init__(
        self,
        container_id: str,
        agent: AgentClient,
        share: SharedTree,
        files: ContainerPlan,
        stdio: Stdio,
        timings: Timings,
        hooks: HostHooks | None = None,
        *,
        disks: ExitStack | None = None,
        process_spec: ProcessSpec | None = None,
        events: Events | None = None,
        name: str = "",
        does_not_end: Callable[[str], None] = lambda container: None,
    ) -> None:
        super().__init__(f"container {container_id}")
        self.id = container_id
        self.name = name
        self.hooks = hooks
        self.process_spec = process_spec or {}
        self._events = events or Events()
        self.init = Process(
            agent, container_id, "", stdio, first_output=lambda: timings.moment("first output", container_id)
        )
        self.init.when_ended(self._ended)
        self.execs: dict[str, Process] = {}
        self._exec_specs: dict[str, ProcessSpec] = {}
        self._agent = agent
        self._share = share
        self._files = files
        self._timings = timings
        self._disks = disks or ExitStack()
        self._does_not_end = does_not_end
        self._deadline: asyncio.TimerHandle | None = None

    async def create(self, request: agent_pb2.CreateContainerRequest, *, timeout: float) -> None:
        """Mount its files and have the agent create it; on failure nothing of it stays.

        Args:
            request: to the agent.
            timeout: seconds for the agent.

        Raises:
            FailedPrecondition: a file cannot be mounted.
            KataError: the agent refused.
        """
        try:
            with self._timings.phase("rootfs", self.id):
                await off_loop(self._share.add, self._files)
            with self._timings.phase("create", self.id):
                await self._agent.create_container(request, timeout=timeout)
        except BaseException:
            await off_loop(self._share.remove, self.id)
            await self.init.close()
            raise
        self.init.become(State.CREATED)
        self.become(State.CREATED)
        self._tell(Happening.CONTAINER_CREATED)

    async def start(self) -> None:
        """Run the init process.

        Raises:
            FailedPrecondition: it has been started.
            KataError: the agent refused.
        """
        self.require("start", State.CREATED)
        with self._timings.phase("start", self.id):
            await self._agent.start_container(self.id)
        self._timings.write()
        self.become(State.RUNNING)
        self._tell(Happening.CONTAINER_STARTED)
        self.init.follow()

    def add_exec(self, exec_id: str, spec: ProcessSpec, stdio: Stdio) -> Process:
        """Prepare an exec process; `start_exec` runs it.

        Args:
            exec_id: unique in the container.
            spec: as in the OCI runtime-spec, config.md, "Process".
            stdio: its streams, owned from now on.

        Raises:
            InvalidArgument: the exec id is not an id.
            AlreadyExists: the exec id is taken.
            FailedPrecondition: the container has stopped.
        """
        validate_id(exec_id, "exec id")
        self.refresh()
        self.require("exec in", State.CREATED, State.RUNNING, State.PAUSED)
        if exec_id in self.execs or exec_id == self.id:
            raise AlreadyExists(f"exec {exec_id} of container {self.id} already exists")
        process = self.execs[exec_id] = Process(self._agent, self.id, exec_id, stdio)
        self._exec_specs[exec_id] = spec
        process.become(State.CREATED)
        return process

    async def start_exec(self, exec_id: str) -> Process:
        """Run a prepared exec process; if that fails, it counts as ended.

        Raises:
            NotFound: no such exec.
            FailedPrecondition: the container does not run, or the exec has been started.
            KataError: the agent refused.
        """
        self.refresh()
        process = self.process(exec_id)
        process.require("start", State.CREATED)
        try:
            self.require("exec in", State.RUNNING)
            spec = self._exec_specs.pop(exec_id)
            if lost := left_out.of_process(spec):
                log.warning("%s: not passed to the guest: %s", process.what, ", ".join(lost))
            await self._agent.exec_process(self.id, exec_id, convert.process_to_proto(edit.process_for_guest(spec)))
        except BaseException:
            # A client waits for the end of the streams before anything else.
            await process.close()
            raise
        self._tell(Happening.EXEC_STARTED, exec_id=exec_id)
        process.when_ended(lambda: self._tell_exit(Happening.EXEC_EXITED, process, exec_id=exec_id))
        process.follow()
        return process

    def _tell(self, what: str, **detail: Any) -> None:
        self._events.tell(Event(what, self.id, detail))

    def _tell_exit(self, what: str, process: Process, **detail: Any) -> None:
        if process.exit is not None:
            self._tell(what, **detail, exit_status=process.exit.status)

    def _ended(self) -> None:
        if self.state is not State.CREATING:
            self._tell_exit(Happening.CONTAINER_EXITED, self.init)
        # Exec processes that have not been started never will be.
        for exec_id in self._exec_specs:  # a start that is in flight has taken its spec
            self.execs[exec_id].abandon()

    def process(self, exec_id: str) -> Process:
        """The init process for "", else an exec process.

        Raises:
            NotFound: no such exec.
        """
        if not exec_id:
            return self.init
        try:
            return self.execs[exec_id]
        except KeyError:
            raise NotFound(f"container {self.id} has no exec {exec_id}") from None

    def refresh(self) -> State:
        """The state, once an exit that happened meanwhile is taken into account."""
        if self.init.exit is not None:
            self.become(State.STOPPED)
        return self.state

    async def wait(self) -> Exit:
        """Wait for the exit of the init process."""
        exit_ = await self.init.wait()
        self.become(State.STOPPED)
        return exit_

    async def kill(self, number: int, *, exec_id: str = "") -> None:
        """Send a signal to a process; SIGKILL to the init process reaches every process of the container.

        Raises:
            NotFound: no such exec, or the process has ended.
            FailedPrecondition: the guest keeps a container that was not started yet.
            KataError: the agent refused.
        """
        process = self.process(exec_id)
        if not exec_id and number == signal.SIGKILL:
            self._has_to_end()
        if not exec_id and self.state is State.CREATED and number in (signal.SIGKILL, signal.SIGTERM):
            # It waits to be started and takes no signals.
            await self._remove_from_guest()
            self.init.abandon()
            self.become(State.STOPPED)
            return
        await process.signal(number)

    def _has_to_end(self) -> None:
        """Engines wait for the exit without a deadline, and delete a pod only when all its containers have ended."""
        if self._deadline is None and self.init.exit is None:
            self._deadline = asyncio.get_running_loop().call_later(KILL_TIMEOUT_S, self._does_not_end, self.what)
            self.init.when_ended(self._deadline.cancel)

    async def pause(self) -> None:
        """Freeze all processes. Raises FailedPrecondition unless it runs, KataError."""
        self.refresh()
        self.require("pause", State.RUNNING)
        await self._agent.pause_container(self.id)
        self.become(State.PAUSED)
        self._tell(Happening.CONTAINER_PAUSED)

    async def resume(self) -> None:
        """Thaw all processes. Raises FailedPrecondition unless it is paused, KataError."""
        self.refresh()
        self.require("resume", State.PAUSED)
        await self._agent.resume_container(self.id)
        self.become(State.RUNNING)
        self._tell(Happening.CONTAINER_RESUMED)

    def require_updatable(self) -> None:
        """Raise FailedPrecondition if it has stopped."""
        self.refresh()
        self.require("update", State.CREATED, State.RUNNING, State.PAUSED)

    async def update(self, resources: LinuxResources) -> None:
        """Set limits in the guest (OCI runtime-spec, config-linux.md, "Control groups").

        Raises:
            FailedPrecondition: it has stopped.
            KataError: the agent refused.
        """
        self.require_updatable()
        if lost := left_out.of_resources(resources):
            log.warning("limits of %s: not passed to the guest: %s", self.what, ", ".join(lost))
        await self._agent.update_container(self.id, convert.resources_to_proto(edit.update_for_guest(resources)))

    async def stats(self) -> agent_pb2.StatsContainerResponse:
        """The statistics of its cgroup in the guest. Raises FailedPrecondition if it has stopped, KataError."""
        self.refresh()
        self.require("read statistics of", State.CREATED, State.RUNNING, State.PAUSED)
        return await self._agent.stats_container(self.id)

    async def processes(self) -> list[tuple[int, str | None]]:
        """Its processes beside the init process: ids in its pid namespace, each with its exec id if it has one.

        Raises:
            KataError: the agent refused.
        """
        self.refresh()
        if self.state not in (State.CREATED, State.RUNNING, State.PAUSED):
            return []
        found = await self._agent.processes(self.id)
        return [(pid, name if name in self.execs else None) for pid, name in found if name != ""]

    async def delete_exec(self, exec_id: str) -> Exit:
        """Forget an exec process that does not run.

        Raises:
            NotFound: no such exec, or not any more: another call has just deleted it.
            FailedPrecondition: it runs.
        """
        process = self.process(exec_id)
        process.require("delete", State.CREATED, State.STOPPED)
        if process.state is State.CREATED:
            process.abandon(status=0)  # it has not failed, and runc says so
        await process.end_output()
        await process.close()
        if self.execs.get(exec_id) is not process:
            raise NotFound(f"container {self.id} has no exec {exec_id}")
        del self.execs[exec_id]
        self._exec_specs.pop(exec_id, None)
        assert process.exit is not None
        return process.exit

    def describe(self) -> dict[str, Any]:
        """What is known of it, for JSON."""
        self.refresh()
        execs = [process.describe(name) for name, process in self.execs.items()]
        return {**self.init.describe(self.id), "name": self.name, "state": self.state, "execs": execs}

    def require_deletable(self, *, force: bool) -> None:
        """Raise FailedPrecondition if it runs and `force` is not set."""
        self.refresh()
        if not force:
            self.require("delete", State.CREATING, State.CREATED, State.STOPPED)

    async def end_output(self) -> None:
        """Wait for the end of its processes' output, before it is deleted; see `Process.end_output`."""
        await asyncio.gather(*(process.end_output() for process in (*self.execs.values(), self.init)))

    async def delete(self, *, force: bool = False) -> Exit:
        """Remove the container from the guest and its files from the shared tree.

        Raises:
            FailedPrecondition: it runs, and `force` is not set; or the guest cannot remove it.
        """
        self.require_deletable(force=force)
        await self.end_output()
        await self._remove_from_guest()
        for process in (*self.execs.values(), self.init):
            await process.close()
        self.become(State.STOPPED)
        await off_loop(self._share.remove, self.id)
        assert self.init.exit is not None
        return self.init.exit

    async def close(self) -> None:
        """Give back what it has on the host, once its VM has ended."""
        try:
            for process in (*self.execs.values(), self.init):
                await process.close()
        finally:
            await off_loop(self._share.remove, self.id)
            await self.let_go_of_disks()

    async def let_go_of_disks(self) -> None:
        """Have the disks of its root kept no longer, once the VM has them no longer. Idempotent."""
        # What was written to may be gigabytes, and the last who has it open frees them.
        await off_loop(self._disks.close)

    async def _remove_from_guest(self) -> None:
        try:
            await self._agent.remove_container(self.id, timeout=REMOVE_TIMEOUT_S)
        except (NotFound, Unavailable):
            pass  # removed already, or the guest is gone with everything in it
        except KataError as error:
            raise FailedPrecondition(f"cannot remove {self.what} from the guest: {error}") from error
