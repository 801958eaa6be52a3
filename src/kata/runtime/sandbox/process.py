"""A process in a container: its init process, or an exec process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from kata.errors import InvalidArgument, KataError, NotFound, Unavailable
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.sandbox.states import Lifecycle, State
from kata.runtime.sandbox.stdio import FdSource, Stdio, relay_input, relay_output

log = logging.getLogger(__name__)

#: The exit status of a process whose VM is gone: killed (128 + SIGKILL).
KILLED = 137
#: Seconds that an exit is held back for output that its consumer does not take.
STUCK_CONSUMER_S = 2.0


@dataclass(frozen=True)
class Exit:
    """How a process ended.

    Attributes:
        status: 0 to 255; 128+n for signal n.
        at_ns: when, in nanoseconds since the epoch, by the host's clock.
    """

    status: int
    at_ns: int


class Process(Lifecycle):
    """One process, from its creation in the guest to its exit.

    Args:
        exec_id: "" for the container's init process.
        stdio: its streams on the host, owned from now on.
        first_output: called once, when its consumer has taken the first output.
    """

    def __init__(
        self,
        agent: AgentClient,
        container_id: str,
        exec_id: str,
        stdio: Stdio,
        *,
        first_output: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(f"exec {exec_id} of container {container_id}" if exec_id else f"container {container_id}")
        self.container_id = container_id
        self.exec_id = exec_id
        self.stdio = stdio
        self._agent = agent
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []
        self._input: asyncio.Task[None] | None = None
        self._progress = time.monotonic()
        self._first_output = first_output

    @property
    def exit(self) -> Exit | None:
        """How it ended; None until then."""
        return self._exit.result() if self._exit.done() else None

    async def wait(self) -> Exit:
        """Wait for the exit; any number of callers."""
        return await asyncio.shield(self._exit)

    def follow(self) -> None:
        """The process runs in the guest: relay its streams and wait for its exit."""
        self.become(State.RUNNING)
        self._tasks.append(asyncio.create_task(self._watch(), name=f"watch {self.what}"))
        self._input = asyncio.create_task(self._relay_input(), name=f"input of {self.what}")

    def abandon(self, status: int = KILLED) -> None:
        """The process never ran, or its guest is gone: it counts as ended. Idempotent."""
        if not self._exit.done():
            self._exit.set_result(Exit(status, time.time_ns()))
            self.become(State.STOPPED)

    async def _watch(self) -> None:
        ids = (self.container_id, self.exec_id)
        outputs = [asyncio.create_task(self._relay_output("stdout"))]
        if not self.stdio.terminal:
            outputs.append(asyncio.create_task(self._relay_output("stderr")))
        self._tasks += outputs
        try:
            status = await self._agent.wait_process(*ids)
        except KataError as error:
            log.info("%s: no exit status from the guest: %s", self.what, error)
            status = KILLED
        await self._drain(outputs)
        self.abandon(status)

    async def _drain(self, outputs: list[asyncio.Task[None]]) -> None:
        """The exit follows the last byte of output, but a consumer that has stopped reading cannot hold it back."""
        self._progress = time.monotonic()
        pending = set(outputs)
        while pending and time.monotonic() < self._progress + STUCK_CONSUMER_S:
            _, pending = await asyncio.wait(pending, timeout=STUCK_CONSUMER_S / 4)

    async def _relay_output(self, stream: str) -> None:
        read = self._agent.read_stdout if stream == "stdout" else self._agent.read_stderr
        sink = self.stdio.stdout if stream == "stdout" else self.stdio.stderr

        def moved() -> None:
            self._progress = time.monotonic()
            tell, self._first_output = self._first_output, None
            if tell is not None:
                tell()

        try:
            await relay_output(lambda: read(self.container_id, self.exec_id), sink, moved)
        except (NotFound, Unavailable) as error:
            log.info("%s of %s ended early: %s", stream, self.what, error)
        except KataError as error:
            log.warning("%s of %s: %s", stream, self.what, error)
        finally:
            if sink is not None:
                sink.close()

    async def _relay_input(self) -> None:
        ids = (self.container_id, self.exec_id)
        source = self.stdio.stdin
        try:
            if source is None:
                # Without this a program that reads its input to the end would wait for ever.
                await self._agent.close_stdin(*ids)
            else:
                await relay_input(
                    source,
                    lambda data: self._agent.write_stdin(*ids, data),
                    lambda: self._agent.close_stdin(*ids),
                )
        except KataError as error:
            log.debug("input of %s ended early: %s", self.what, error)
        finally:
            if source is not None:
                source.close()

    async def close_input(self) -> None:
        """End the input: pass on what is there already, then close the process's standard input."""
        if isinstance(self.stdio.stdin, FdSource):
            self.stdio.stdin.finish()
        if self._input is not None:
            await asyncio.shield(self._input)

    async def resize(self, *, rows: int, columns: int) -> None:
        """Set the size of its terminal.

        Raises:
            InvalidArgument: it has none.
            KataError: the agent refused.
        """
        if not self.stdio.terminal:
            raise InvalidArgument(f"{self.what} has no terminal")
        await self._agent.resize(self.container_id, self.exec_id, rows=rows, columns=columns)

    async def signal(self, number: int) -> None:
        """Send a signal.

        Raises:
            NotFound: the process has ended.
            KataError: the agent refused.
        """
        if self.state is State.STOPPED:
            raise NotFound(f"{self.what} has already ended")
        await self._agent.signal_process(self.container_id, self.exec_id, number)

    async def close(self) -> None:
        """Stop relaying and close the streams; a process without an exit counts as killed. Idempotent."""
        tasks = [*self._tasks, *([self._input] if self._input else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.stdio.close()
        self.abandon()
