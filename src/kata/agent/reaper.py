"""Children: started, waited for, and never left as zombies.

The agent is PID 1 (or a subreaper), so every orphan of the machine becomes its child, and a container's first process
is such an orphan: crun starts it and leaves. All exits therefore come through one waitpid(-1) here, and nothing else
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

# What every program that the agent starts finds in its environment.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

# Python ignores these, and an ignored signal stays ignored across exec: `yes | head` would never end in a container.
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)

# After SIGKILL a process can only linger in the kernel; this long, then it is somebody else's problem.
_KILL_GRACE = 5.0

_MAX_OUTPUT = 64 * 1024


@dataclass(frozen=True)
class Result:
    """How a helper ended: exit status (128 + n for signal n) and what it wrote to its output, at most 64 KiB."""

    status: int
    output: str


def exit_code(wait_status: int) -> int:
    """A shell's exit code of a wait status: 128 + n if signal n ended the process."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


class Reaper:
    """Collects the exits of all children on SIGCHLD and hands each to whoever watches that process.

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
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    def reap(self) -> None:
        """Collect every exit that there is. Exits of strangers are forgotten, unless somebody is adopting."""
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

        A process that crun started may have ended before the agent has read its number. Outside of such a window
        nothing is kept, so that a number which the kernel uses again cannot be given an old exit.
        """
        self._adopting += 1
        try:
            yield
        finally:
            self._adopting -= 1
            if not self._adopting:
                self._early.clear()

    def watch(self, pid: int) -> asyncio.Future[int]:
        """A future of the exit code of `pid`, which must be a child or have been adopted.

        Cancelling one waiter must not cost the others the answer: await it through asyncio.shield.
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
        """Start a program in a session of its own; streams that are not given are /dev/null. Returns pid and exit.

        With `terminal`, a path, that is all three streams, and what the session is controlled by.

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
        """Wait for a spawned helper; at the deadline or when cancelled, kill its whole session's group.

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
                await asyncio.wait([exited], timeout=_KILL_GRACE)
