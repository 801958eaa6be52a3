"""This process's streams, signals and terminal, while they are those of a process in a guest.

A signal is passed on; the third SIGINT or SIGTERM as SIGKILL. Once the process has ended, a signal ends the wait for a
slow reader of its output.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from typing import Any

from kata.cli import terminal
from kata.cli.streams import HostSink, HostSource
from kata.errors import KataError
from kata.runtime.sandbox.process import Process, first
from kata.runtime.sandbox.stdio import Stdio

#: After so many of these signals the process is killed.
_TERMINATING = (signal.SIGINT, signal.SIGTERM)
_MAX_TERMINATING = 3
#: From SIGHUP to SIGKILL for a process whose terminal is gone.
_HANGUP_GRACE_S = 2.0


class Attached:
    """One attachment. Made in a running event loop.

    Args:
        interactive: whether standard input is forwarded.
        tty: whether the process has a terminal, which this process's is for it.
        hung_up: called when the terminal has gone.

    Attributes:
        stdio: for the process, which owns them.
        output_error: why output could not be written; the process was killed then, as SIGPIPE would have.
    """

    def __init__(self, *, interactive: bool, tty: bool, hung_up: Callable[[], None]) -> None:
        self._interactive = interactive
        self._tty = tty
        self._hung_up = hung_up
        self._process: Process | None = None
        self._ended = False
        self._terminating = 0
        self._given_up = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.output_error: OSError | None = None
        self.stdio = Stdio(self._source(), self._sink(1), None if tty else self._sink(2), terminal=tty)

    def _source(self) -> HostSource | None:
        if not self._interactive:
            return None
        # In raw mode a terminal's input ends only when it is hung up.
        return HostSource(0, self._terminal_gone if self._tty else lambda: None)

    def _terminal_gone(self) -> None:
        if self._process is not None:
            self._hung_up()

    def _sink(self, fd: int) -> HostSink:
        return HostSink(fd, self._output_failed)

    def _output_failed(self, error: OSError) -> None:
        if self.output_error is None and self._process is not None:
            self.output_error = error
            self._spawn(self._kill(self._process, signal.SIGKILL))

    async def attach(self, process: Process) -> None:
        """It is this process from now on; its terminal gets the size of this one."""
        self._process = process
        if self._tty:
            await self._resize(process)

    async def wait(self) -> int:
        """Wait for the end of the process, and until its output has been written; returns its exit status.

        A process that it has left in the background may hold its streams: that is not waited for.
        """
        assert self._process is not None
        with terminal.raw(0) if self._tty and self._interactive else nullcontext():
            status = (await self._process.wait()).status
            self._ended = True
            await first(self._process.output_taken(), self._given_up.wait())
        return status

    def signalled(self, number: int) -> None:
        """A signal has come."""
        process = self._process
        if process is None:
            return
        if number == signal.SIGWINCH:
            if self._tty:
                self._spawn(self._resize(process))
        elif self._ended:
            self._given_up.set()
        else:
            self._forward(process, number)

    def _forward(self, process: Process, number: int) -> None:
        if number in _TERMINATING:
            self._terminating += 1
        if self._terminating >= _MAX_TERMINATING:
            number = signal.SIGKILL
        self._spawn(self._kill(process, number))
        if number == signal.SIGHUP and self._tty:
            self._spawn(self._hang_up(process))

    async def _hang_up(self, process: Process) -> None:
        """The user's terminal is gone: kill a process that survives SIGHUP, as the user no longer can."""
        await asyncio.sleep(_HANGUP_GRACE_S)
        await self._kill(process, signal.SIGKILL)

    async def _kill(self, process: Process, number: int) -> None:
        try:
            await process.signal(number)
        except KataError:
            pass  # it has ended

    async def _resize(self, process: Process) -> None:
        size = terminal.size(0, 1, 2)
        if size is not None:
            try:
                await process.resize(rows=size.lines, columns=size.columns)
            except KataError:
                pass  # it has ended

    async def close(self) -> None:
        """Signals are passed on no longer."""
        self._process = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
