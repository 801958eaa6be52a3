"""A container in the foreground, with this process's streams, signals and exit code.

Signals by phase: while the sandbox starts they end it, while the command runs they are forwarded to it, afterwards they
end the wait for a slow reader of its output. The third SIGINT or SIGTERM is sent as SIGKILL.
"""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from typing import Any

from kata.cli import terminal
from kata.cli.render import ExitCode, command_exit_code, report, say, signalled
from kata.cli.request import RunRequest
from kata.cli.signals import ENDING, Signals, ignore
from kata.cli.streams import HostSink, HostSource, all_written
from kata.errors import KataError, Unavailable
from kata.oci.spec import Bundle
from kata.runtime.config.settings import Config
from kata.runtime.ledger.journal import Ledger
from kata.runtime.sandbox.container import Container
from kata.runtime.sandbox.process import KILLED
from kata.runtime.sandbox.sandbox import ContainerRequest, Sandbox
from kata.runtime.sandbox.start import start_sandbox
from kata.runtime.sandbox.stdio import Stdio
from kata.runtime.storage.disk import Layers

#: After so many of these signals the command is killed.
_TERMINATING = (signal.SIGINT, signal.SIGTERM)
_MAX_TERMINATING = 3
#: From SIGHUP to SIGKILL for a command whose terminal is gone.
_HANGUP_GRACE_S = 2.0
#: For the agent's answer to a health check.
_CHECK_TIMEOUT_S = 5.0


class Foreground:
    """One run.

    Args:
        request: what the user asked for.
        sandbox_id: the id of the sandbox, and of its container.
        bundle: spec and root file system; nothing of it has to be on disk.
        config: the configuration.
        ledger: passed to the sandbox, which releases it.
        signals: of this process; delivered to this run while it lasts.
        layers: what the root file system is made of, if it is on disks.
    """

    def __init__(
        self,
        request: RunRequest,
        sandbox_id: str,
        bundle: Bundle,
        config: Config,
        ledger: Ledger,
        signals: Signals,
        layers: Layers | None = None,
    ) -> None:
        self._request = request
        self._id = sandbox_id
        self._bundle = bundle
        self._layers = layers
        self._config = config
        self._ledger = ledger
        self._signals = signals
        self._on_signal: Callable[[int], None] = self._cut_start
        self._main: asyncio.Task[Any] | None = None
        self._container: Container | None = None
        self._cut = 0
        self._terminating = 0
        self._output_error: OSError | None = None
        self._out_of_memory = False
        self._drained = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Start the sandbox, run the command, stop the sandbox; return the exit code of `kata run`.

        Raises:
            KataError: the sandbox could not start, or ended unexpectedly.
            CancelledError: the task was cancelled, and not by a signal.
        """
        self._main = asyncio.current_task()
        loop = asyncio.get_running_loop()
        self._signals.deliver_to(lambda number: loop.call_soon_threadsafe(self._signalled, number))
        try:
            sandbox = await start_sandbox(self._id, self._bundle, self._config, self._ledger, progress=say)
            try:
                return await self._in_sandbox(sandbox)
            finally:
                self._on_signal = ignore
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                await sandbox.stop()
        except asyncio.CancelledError:
            if self._cut:
                return signalled(self._cut)
            raise
        finally:
            self._signals.deliver_to(ignore)

    async def _in_sandbox(self, sandbox: Sandbox) -> int:
        stdout, stderr = self._sink(1), None if self._request.tty else self._sink(2)
        stdio = Stdio(self._source(), stdout, stderr, terminal=self._request.tty)
        try:
            container = await sandbox.create_container(
                ContainerRequest(self._id, self._bundle, stdio, layers=self._layers)
            )
            self._container = container
            if self._request.tty:
                # Before the start, so that the command never sees a different size.
                await self._resize(container)
            await sandbox.start_container(container)
        except BaseException as error:
            stdio.close()
            if not isinstance(error, KataError):
                raise
            report(error, debug=self._request.debug)
            return command_exit_code(error)
        self._spawn(self._watch_memory(sandbox))
        self._on_signal = lambda number: self._forward(container, number)
        with terminal.raw(0) if self._request.tty and self._request.interactive else nullcontext():
            status = (await container.wait()).status
            self._on_signal = lambda _: self._drained.set()
            await all_written([sink for sink in (stdout, stderr) if sink is not None], self._drained)
        return await self._exit_code(sandbox, status)

    # --------------------------------------------------------------------------------------------------------- streams

    def _source(self) -> HostSource | None:
        if not self._request.interactive:
            return None
        return HostSource(0, self._terminal_gone if self._request.tty else lambda: None)

    def _terminal_gone(self) -> None:
        """In raw mode a terminal's input ends only when it is hung up."""
        if self._container is not None:
            self._on_signal(signal.SIGHUP)

    def _sink(self, fd: int) -> HostSink:
        return HostSink(fd, self._output_failed)

    def _output_failed(self, error: OSError) -> None:
        """The output cannot be written any more: kill the command, as SIGPIPE would if it ran on the host."""
        if self._output_error is None and self._container is not None:
            self._output_error = error
            self._spawn(self._kill(self._container, signal.SIGKILL))

    async def _resize(self, container: Container) -> None:
        size = terminal.size(0, 1, 2)
        if size is not None:
            try:
                await container.init.resize(rows=size.lines, columns=size.columns)
            except KataError:
                pass  # it has ended

    # --------------------------------------------------------------------------------------------------------- signals

    def _signalled(self, number: int) -> None:
        if number == signal.SIGWINCH:
            if self._request.tty and self._container is not None:
                self._spawn(self._resize(self._container))
        else:
            self._on_signal(number)

    def _cut_start(self, number: int) -> None:
        if number in ENDING and self._main is not None:
            self._cut = number
            self._on_signal = ignore
            self._main.cancel()

    def _forward(self, container: Container, number: int) -> None:
        if number in _TERMINATING:
            self._terminating += 1
        if self._terminating >= _MAX_TERMINATING:
            number = signal.SIGKILL
        self._spawn(self._kill(container, number))
        if number == signal.SIGHUP and self._request.tty:
            self._spawn(self._hang_up(container))

    async def _hang_up(self, container: Container) -> None:
        """The user's terminal is gone: kill a command that survives SIGHUP, as the user no longer can."""
        await asyncio.sleep(_HANGUP_GRACE_S)
        await self._kill(container, signal.SIGKILL)

    async def _kill(self, container: Container, number: int) -> None:
        try:
            await container.kill(number)
        except KataError:
            pass  # it has ended

    # ------------------------------------------------------------------------------------------------------------- end

    async def _watch_memory(self, sandbox: Sandbox) -> None:
        async for _ in sandbox.oom_events():
            self._out_of_memory = True

    async def _exit_code(self, sandbox: Sandbox, status: int) -> int:
        if self._output_error is not None:
            if self._output_error.errno == errno.EPIPE:
                return signalled(signal.SIGPIPE)
            say(f"cannot write the command's output: {(self._output_error.strerror or '').lower()}")
            return ExitCode.RUN_FAILED
        if sandbox.is_failing:
            raise await self._vm_ended(sandbox)
        if status == KILLED:
            try:
                await sandbox.agent.check(_CHECK_TIMEOUT_S)
            except KataError as error:
                raise await self._vm_ended(sandbox) from error
            if self._out_of_memory:
                limit = f" (limit {self._request.memory >> 20}M)" if self._request.memory else ""
                say(f"the command was killed by the OOM killer{limit}", hint="raise --memory")
        return status

    @staticmethod
    async def _vm_ended(sandbox: Sandbox) -> Unavailable:
        why = ""
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT_S):
                why = f": {await sandbox.why_ended()}"
        except TimeoutError:
            pass  # it is the agent that does not answer
        return Unavailable(
            f"the VM ended while the command was running{why}", hint="`kata run --debug` shows QEMU's messages"
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
