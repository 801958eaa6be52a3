"""A process in a container: its init process, or an exec process."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from kata.errors import InvalidArgument, KataError, NotFound, Unavailable
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.sandbox.states import Lifecycle, State
from kata.runtime.sandbox.stdio import FdSource, OutputRelay, Sink, Stdio, relay_input

log = logging.getLogger(__name__)

#: The exit status of a process whose VM is gone: killed (128 + SIGKILL).
KILLED = 137
#: Seconds without progress after which a consumer has stopped reading.
STUCK_CONSUMER_S = 2.0
#: Bytes of output that do not hold an exit back if their consumer has stopped reading: under runc a pipe has them.
_PIPE = 64 << 10
#: Seconds for the streams to end with the process, as most do; only then is the guest asked what it still has.
_END_S = 0.05
#: Seconds for the streams to end before a process is deleted, as in containerd's shim for runc.
STREAM_END_TIMEOUT_S = 10.0
#: Signals that somebody sends who wants the process to end.
_KILLING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGKILL)


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
        self._relays: dict[asyncio.Task[None], OutputRelay] = {}
        self._killed = False
        self._input: asyncio.Task[None] | None = None
        self._progress = time.monotonic()
        self._first_output = first_output

    @property
    def exit(self) -> Exit | None:
        """How it ended; None until then."""
        return self._exit.result() if self._exit.done() else None

    def describe(self, name: str) -> dict[str, Any]:
        """What is known of it, for JSON; `name` is its id there."""
        ended = self.exit
        return {
            "id": name,
            "state": self.state,
            "exit_status": ended.status if ended else None,
            "exited_at": ended.at_ns / 1e9 if ended else None,
        }

    async def wait(self) -> Exit:
        """Wait for the exit; any number of callers."""
        return await asyncio.shield(self._exit)

    def follow(self) -> None:
        """The process runs in the guest: relay its streams and wait for its exit."""
        self.become(State.RUNNING)
        self._tasks.append(asyncio.create_task(self._watch(), name=f"watch {self.what}"))
        self._input = asyncio.create_task(self._relay_input(), name=f"input of {self.what}")

    def when_ended(self, call: Callable[[], None]) -> None:
        """Have something called once it has ended."""
        self._exit.add_done_callback(lambda _: call())

    def abandon(self, status: int = KILLED) -> None:
        """It will never run: it counts as ended, and who reads its output sees the end. Idempotent."""
        if self._exit.done():
            return
        if self.stdio.stdin is not None:
            self.stdio.stdin.close()
        for sink in (self.stdio.stdout, self.stdio.stderr):
            if sink is not None:
                # A reader that has not opened its side yet is waited for, until `close`.
                self._tasks.append(asyncio.create_task(sink.finish(), name=f"end of {self.what}"))
        self._end(status)

    def _end(self, status: int) -> None:
        """Tell the exit. Idempotent."""
        if not self._exit.done():
            self._exit.set_result(Exit(status, time.time_ns()))
            self.become(State.STOPPED)

    async def _watch(self) -> None:
        self._relay_output("stdout")
        if not self.stdio.terminal:
            self._relay_output("stderr")
        try:
            status = await self._agent.wait_process(self.container_id, self.exec_id)
        except KataError as error:
            log.info("%s: no exit status from the guest: %s", self.what, error)
            status = KILLED
        self._killed = self._killed or status == KILLED
        await self._hold_back()
        self._end(status)

    async def _hold_back(self) -> None:
        """Wait until the consumers have all that the process has written: a client may leave when it hears of the exit.

        One that has stopped reading holds back the exit of a process that was killed for STUCK_CONSUMER_S, and that of
        another as long as there is more than a pipe would hold, since there it would be blocked and not have ended.
        """
        await asyncio.wait(self._relays, timeout=_END_S)
        self._progress = time.monotonic()
        drained = asyncio.create_task(self._drained())
        taken = asyncio.create_task(self._all_taken(drained))
        try:
            while not taken.done():
                await asyncio.wait({taken}, timeout=STUCK_CONSUMER_S / 4)
                held = sum(relay.received - relay.taken for relay in self._relays.values())
                few = drained.done() and held <= _PIPE
                if (few or self._killed) and time.monotonic() > self._progress + STUCK_CONSUMER_S:
                    return
        finally:
            for task in (drained, taken):
                task.cancel()
            await asyncio.gather(drained, taken, return_exceptions=True)

    async def _drained(self) -> None:
        """Wait until all that the process has written is here."""
        if not all(task.done() for task in self._relays):
            await first(self._ask_for_output(), asyncio.wait(self._relays))

    async def _ask_for_output(self) -> None:
        try:
            await self._agent.output_drained(self.container_id, self.exec_id)
        except KataError as error:
            log.debug("output of %s: %s", self.what, error)

    async def output_taken(self) -> None:
        """Wait, after its end, until its consumers have taken what it has written, however long they take.

        What others write to its streams, such as processes that it has left in the background, is not waited for.
        """
        await self._drained()
        await self._taken()

    async def _all_taken(self, drained: asyncio.Task[None]) -> None:
        await drained
        await self._taken()

    async def _taken(self) -> None:
        for task, relay in self._relays.items():
            # One that has failed takes no more.
            await first(relay.all_taken(), asyncio.wait({task}))

    def _relay_output(self, stream: str) -> None:
        read = self._agent.read_stdout if stream == "stdout" else self._agent.read_stderr
        sink = self.stdio.stdout if stream == "stdout" else self.stdio.stderr
        relay = OutputRelay(lambda: read(self.container_id, self.exec_id), sink, self._moved)
        task = asyncio.create_task(self._run_relay(relay, stream, sink), name=f"{stream} of {self.what}")
        self._relays[task] = relay

    def _moved(self) -> None:
        self._progress = time.monotonic()
        tell, self._first_output = self._first_output, None
        if tell is not None:
            tell()

    async def _run_relay(self, relay: OutputRelay, stream: str, sink: Sink | None) -> None:
        try:
            await relay.run()
        except (NotFound, Unavailable) as error:
            log.info("%s of %s ended early: %s", stream, self.what, error)
        except KataError as error:
            log.warning("%s of %s: %s", stream, self.what, error)
        finally:
            if sink is not None:
                sink.close()

    async def end_output(self) -> None:
        """Before it is deleted, wait for the end of its output, which others may still write to; then give that up."""
        if self.exit is None or not self._relays:
            return
        _, left = await asyncio.wait(self._relays, timeout=STUCK_CONSUMER_S if self._killed else STREAM_END_TIMEOUT_S)
        if left:
            try:
                await self._agent.release_output(self.container_id, self.exec_id)
            except KataError as error:
                log.debug("output of %s: %s", self.what, error)

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
            Unavailable: the VM ends; not for a signal that ends the process.
            KataError: the agent refused.
        """
        if self.state is State.STOPPED:
            raise NotFound(f"{self.what} has already ended")
        # Also of a process that has ended, and whose exit is held back.
        self._killed = self._killed or number in _KILLING
        try:
            await self._agent.signal_process(self.container_id, self.exec_id, number)
        except Unavailable as error:
            if number not in _KILLING:
                raise
            # It ends with the VM. An engine that were refused now would delete nothing, and not come back.
            log.info("%s ends with its VM: %s", self.what, error)

    async def close(self) -> None:
        """Stop relaying and close the streams; a process without an exit counts as killed. Idempotent."""
        tasks = [*self._tasks, *self._relays, *([self._input] if self._input else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.stdio.close()
        self._end(KILLED)


async def first(*works: Coroutine[Any, Any, object]) -> None:
    """Do these at the same time until one is done."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
