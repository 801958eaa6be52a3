"""One process of a container: its streams, its signals and its exit."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from kata.agent.stdio import Stdio
from kata.errors import InvalidArgument, NotFound

_MAX_SIGNAL = 64


class Process:
    """A process that the runtime started and the reaper watches.

    Args:
        name: for messages, e.g. "process e1 of container c1".
        pid: its id in the guest.
        exited: the reaper's future of its exit code.
        stdio: its streams; owned from here on.
        before_exit: called when it has ended, before anybody who waits learns it.
    """

    def __init__(
        self, name: str, pid: int, exited: asyncio.Future[int], stdio: Stdio, before_exit: Callable[[], None]
    ) -> None:
        self.name = name
        self.pid = pid
        self.stdio = stdio
        self._before_exit = before_exit
        self._exited = exited
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        exited.add_done_callback(self._ended)

    def _ended(self, exited: asyncio.Future[int]) -> None:
        self._before_exit()
        self._exit.set_result(exited.result())

    @property
    def running(self) -> bool:
        """Whether its exit has not been collected yet."""
        # As the reaper knows it, before the waiters do: from then on the pid may be another process's.
        return not self._exited.done()

    async def wait(self) -> int:
        """Wait for its end; returns the exit code, 128 + n for signal n. Any number of callers may wait."""
        return await asyncio.shield(self._exit)

    def signal(self, number: int) -> None:
        """Send a signal. As long as the exit has not been collected the pid cannot belong to another process.

        Raises:
            InvalidArgument: no such signal.
            NotFound: it has ended.
        """
        if not 0 <= number <= _MAX_SIGNAL:
            raise InvalidArgument(f"invalid signal {number} (0 to {_MAX_SIGNAL})")
        if not self.running:
            raise NotFound(f"{self.name} has already finished")
        os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM, or SIGKILL where the kernel would ignore that.

        The init process of a pid namespace gets no signal that it has no handler for (pid_namespaces(7)), so a
        container engine would wait its whole grace period for nothing. Kata sends SIGKILL then, and so does this.

        Raises:
            NotFound: it has ended.
        """
        ignored = self._is_namespace_init() and not self._catches(signal.SIGTERM)
        self.signal(signal.SIGKILL if ignored else signal.SIGTERM)

    def _is_namespace_init(self) -> bool:
        return self._status("NSpid").split()[-1:] == ["1"]

    def _catches(self, number: int) -> bool:
        return bool(int(self._status("SigCgt") or "0", 16) >> (number - 1) & 1)

    def _status(self, key: str) -> str:
        return status(self.pid, key)


def status(pid: int, key: str) -> str:
    """A field of /proc/PID/status (proc(5)); "" if the process is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name == key:
                    return value.strip()
    except (FileNotFoundError, ProcessLookupError):
        pass
    return ""
