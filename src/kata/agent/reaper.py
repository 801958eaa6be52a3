"""Children: started, waited for, and never left as zombies.

The agent is PID 1 (or a subreaper), so every orphan of the guest becomes its child, and a container's init process
is such an orphan: crun starts it and exits. All exits therefore come through one waitpid(-1) here, and nothing else
in the agent may wait for a process (no subprocess module).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kata.errors import DeadlineExceeded
from kata.linux import process

#: The environment of every program that the agent starts.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

# Python ignores these, and an ignored signal stays ignored across exec: `yes | head` would never end in a container.
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)

#: After SIGKILL a process can only hang in the kernel; it is not waited for any longer than this.
_KILL_TIMEOUT_S = 5.0

_MAX_OUTPUT = 64 * 1024


@dataclass(frozen=True)
class Result:
    """How a helper ended: exit status (128 + n for signal n) and what it wrote to its output, at most 64 KiB."""

    status: int
    output: str


def exit_code(wait_status: int) -> int:
    """Return a shell's exit code for a wait status (wait(2)): 128 + n if signal n ended the process."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


class Reaper:
    """Collects the exits of all children on SIGCHLD and gives each to those who watch that process.

    One per process. `start` before the first child, `stop` at the end, both within the running event loop.

    Args:
        fixed_addresses: execute programs without randomized addresses.
    """

    def __init__(self, *, fixed_addresses: bool = False) -> None:
        self._executing = process.fixed_addresses if fixed_addresses else contextlib.nullcontext
        self._watched: dict[int, asyncio.Future[int]] = {}
        self._early: dict[int, int] = {}
        self._adopting = 0

    def start(self) -> None:
        """Begin to collect exits."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)

    def stop(self) -> None:
        """Stop collecting exits."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    def reap(self) -> None:
        """Collect all pending exits. Those of unknown processes are dropped, unless somebody is adopting."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            future = self._watched.pop(pid, None)
            if future is None:
                if self._adopting:
                    self._early[pid] = exit_code(status)
            elif not future.done():
                future.set_result(exit_code(status))

    @contextlib.contextmanager
    def adopting(self) -> Iterator[None]:
        """Within it, exits of unknown processes are kept for a later `watch`.

        A process that crun started may have ended before the agent has read its pid. Outside of such a window nothing
        is kept, so that a pid which the kernel reuses cannot be given an old exit.
        """
        self._adopting += 1
        try:
            yield
        finally:
            self._adopting -= 1
            if not self._adopting:
                self._early.clear()

    def watch(self, pid: int) -> asyncio.Future[int]:
        """Return a future of the exit code of `pid`, which must be a child or have been adopted.

        Several tasks may wait for it: await it through asyncio.shield, so that cancelling one does not cancel it for
        all.
        """
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if pid in self._early:
            future.set_result(self._early.pop(pid))
        else:
            self._watched[pid] = future
        return future

    def spawn(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        terminal: str | None = None,
        env: Mapping[str, str] = ENVIRONMENT,
    ) -> tuple[int, asyncio.Future[int]]:
        """Start a program in a new session.

        Args:
            argv: the program, looked up in $PATH, and its arguments.
            stdin: a descriptor; /dev/null for None.
            stdout: likewise.
            stderr: likewise.
            terminal: path of a terminal, which is all three streams and controls the session.
            env: its environment.

        Returns:
            Its pid and a future of its exit code.

        Raises:
            OSError: the program cannot be executed.
        """
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
        for target, fd in enumerate((stdin, stdout, stderr)):
            if fd is None:
                actions.append((os.POSIX_SPAWN_OPEN, target, terminal or os.devnull, os.O_RDWR, 0))
            else:
                actions.append((os.POSIX_SPAWN_DUP2, fd, target))
        with self._executing():
            pid = os.posix_spawnp(
                argv[0], list(argv), env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=_DEFAULT_SIGNALS
            )
        return pid, self.watch(pid)

    async def run(
        self, argv: Sequence[str], *, timeout: float, stdin: int | None = None, env: Mapping[str, str] = ENVIRONMENT
    ) -> Result:
        """Run a helper to its end, with its output in a file: a pipe might be held open by its children.

        Args:
            argv: the program and its arguments.
            timeout: seconds.
            stdin: a descriptor; /dev/null for None.
            env: its environment.

        Raises:
            DeadlineExceeded: it did not end in `timeout` seconds, and was killed.
            OSError: it cannot be executed.
        """
        output = os.memfd_create("output", os.MFD_CLOEXEC)
        try:
            pid, exited = self.spawn(argv, stdin=stdin, stdout=output, stderr=output, env=env)
            status = await self.finish(pid, exited, argv[0], timeout)
            return Result(status, os.pread(output, _MAX_OUTPUT, 0).decode(errors="replace"))
        finally:
            os.close(output)

    async def finish(self, pid: int, exited: asyncio.Future[int], name: str, timeout: float) -> int:
        """Wait for a spawned helper; at the deadline or when cancelled, kill its process group.

        Args:
            pid: as `spawn` returned it.
            exited: as `spawn` returned it.
            name: names it in the error.
            timeout: seconds.

        Raises:
            DeadlineExceeded: it did not end in time.
        """
        try:
            return await asyncio.wait_for(asyncio.shield(exited), timeout)
        except TimeoutError:
            raise DeadlineExceeded(f"{name} did not finish within {timeout:g} s and was killed") from None
        finally:
            if not exited.done():
                os.killpg(pid, signal.SIGKILL)
                await asyncio.wait([exited], timeout=_KILL_TIMEOUT_S)
