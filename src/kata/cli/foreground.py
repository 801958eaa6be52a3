"""A container in the foreground, with this process's streams, signals and exit code.

Signals by phase: while the sandbox starts they end it, from then on they are the command's (`kata.cli.attached`).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from kata.cli.attached import Attached
from kata.cli.render import command_exit_code, report, say, signalled, unwritten
from kata.cli.request import RunRequest
from kata.cli.signals import ENDING, Signals, ignore
from kata.errors import KataError, Unavailable
from kata.oci.spec import Bundle
from kata.runtime import tracing
from kata.runtime.config.settings import Config
from kata.runtime.ledger.journal import Ledger
from kata.runtime.sandbox.process import KILLED
from kata.runtime.sandbox.sandbox import ContainerRequest, Sandbox
from kata.runtime.sandbox.start import start_sandbox
from kata.runtime.storage.disk import Layers

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
        self._attached: Attached | None = None
        self._cut = 0
        self._out_of_memory = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Start the sandbox, run the command, stop the sandbox; return the exit code of `kata run`.

        Raises:
            KataError: the sandbox could not start, or ended unexpectedly.
            CancelledError: the task was cancelled, and not by a signal.
        """
        if not self._config.runtime.enable_tracing:
            return await self._run()
        tracer = tracing.turn_on(self._config.runtime, self._id, "", self._bundle.spec.get("annotations") or {})
        try:
            with tracer.operation("kata run"):
                return await self._run()
        finally:
            await tracing.turn_off()

    async def _run(self) -> int:
        self._main = asyncio.current_task()
        loop = asyncio.get_running_loop()
        self._signals.deliver_in(loop, self._signalled)
        try:
            sandbox = await start_sandbox(self._id, self._bundle, self._config, self._ledger, progress=say)
            try:
                return await self._in_sandbox(sandbox)
            finally:
                self._on_signal = ignore
                if self._attached is not None:
                    await self._attached.close()
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
        attached = self._attached = Attached(
            interactive=self._request.interactive,
            tty=self._request.tty,
            hung_up=lambda: self._on_signal(signal.SIGHUP),
        )
        try:
            container = await sandbox.create_container(
                ContainerRequest(self._id, self._bundle, attached.stdio, layers=self._layers)
            )
            # Before the start, so that the command never sees a different size.
            await attached.attach(container.init)
            await sandbox.start_container(container)
        except BaseException as error:
            attached.stdio.close()
            if not isinstance(error, KataError):
                raise
            report(error, debug=self._request.debug)
            return command_exit_code(error)
        self._spawn(self._watch_memory(sandbox))
        self._on_signal = attached.signalled
        return await self._exit_code(sandbox, await attached.wait(), attached.output_error)

    # --------------------------------------------------------------------------------------------------------- signals

    def _signalled(self, number: int) -> None:
        if number == signal.SIGWINCH and self._attached is not None:
            self._attached.signalled(number)
        elif number != signal.SIGWINCH:
            self._on_signal(number)

    def _cut_start(self, number: int) -> None:
        if number in ENDING and self._main is not None:
            self._cut = number
            self._on_signal = ignore
            self._main.cancel()

    # ------------------------------------------------------------------------------------------------------------- end

    async def _watch_memory(self, sandbox: Sandbox) -> None:
        async for _ in sandbox.oom_events():
            self._out_of_memory = True

    async def _exit_code(self, sandbox: Sandbox, status: int, output_error: OSError | None) -> int:
        if output_error is not None:
            return unwritten(output_error)
        if sandbox.is_halted:
            return status
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
