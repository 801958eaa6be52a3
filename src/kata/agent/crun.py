"""One run of crun: its command line, its files, and its errors translated to `kata.errors`.

crun passes its own standard streams on to the container's process, so its messages go to a log file. Only a failure to
execute the program is reported on the container's standard error, as no other process is left to report it: in plain
text, which is why the log is plain text as well. The exit status is 1 then, as with runc.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kata.agent.reaper import Reaper
from kata.errors import FailedPrecondition, Internal, KataError, NotFound, PermissionDenied

#: Emulated guests are slow, but no call takes a tenth of this.
_TIMEOUT_S = 60.0
_MAX_TEXT = 64 * 1024
_MISSING = re.compile("executable file `(.*)` not found", re.DOTALL | re.IGNORECASE)


class Streams(NamedTuple):
    """Streams of a new process: three descriptors, or a console socket's path for a terminal."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    console_socket: str | None = None


class Call:
    """A running crun.

    Args:
        reaper: starts it.
        root: crun's state directory.
        verb: its command, such as "create".
        options: the arguments of the command.
        files: options that name files which crun reads and writes, with their content; they are memory of the agent,
            so nothing is left on disk.
        streams: its standard streams, which it passes on.

    Raises:
        OSError: it cannot be executed.
    """

    def __init__(
        self,
        reaper: Reaper,
        root: str,
        verb: str,
        options: Sequence[str],
        files: Mapping[str, bytes],
        streams: Streams,
    ) -> None:
        self._reaper = reaper
        self._verb = verb
        self._memory = {"--log": _memfd(b"")}
        try:
            for option, content in files.items():
                self._memory[option] = _memfd(content)
            paths = {option: f"/proc/{os.getpid()}/fd/{fd}" for option, fd in self._memory.items()}
            log = paths.pop("--log")
            argv = ["crun", f"--root={root}", "--cgroup-manager=cgroupfs", f"--log=file:{log}"]
            argv += [verb, *(f"{option}={path}" for option, path in paths.items()), *options]
            self._pid, self._exited = reaper.spawn(
                argv, stdin=streams.stdin, stdout=streams.stdout, stderr=streams.stderr
            )
        except BaseException:
            self._close()
            raise

    @property
    def ended(self) -> bool:
        """Whether it has exited."""
        return self._exited.done()

    async def finish(self) -> str:
        """Wait for its end; return what it has written to the last of the files.

        Raises:
            DeadlineExceeded: it did not end in time, and was killed.
            KataError: it failed: NotFound, PermissionDenied, FailedPrecondition or Internal, see `explain`.
        """
        try:
            status = await self._reaper.finish(self._pid, self._exited, f"crun {self._verb}", _TIMEOUT_S)
            if status:
                error: KataError = explain(self._verb, status, _text(self._memory["--log"]))
                raise error
            return _text(list(self._memory.values())[-1])
        finally:
            self._close()

    def kill(self) -> None:
        """Kill it. Idempotent; the reaper collects its exit."""
        if not self._exited.done():
            os.killpg(self._pid, signal.SIGKILL)
        self._close()

    def _close(self) -> None:
        for fd in self._memory.values():
            os.close(fd)
        self._memory.clear()


def explain(verb: str, status: int, log: str) -> KataError:
    """Return the error for crun's log, with runc's texts, quotes included, where container engines look for them.

    Args:
        verb: crun's command.
        status: its exit status.
        log: the text of its log file.
    """
    message = log.strip().rpartition("\n")[2]  # earlier lines are warnings
    lower = message.lower()
    # The name is the container's, and may contain anything.
    if missing := _MISSING.search(log):
        return NotFound(f'exec: "{missing[1]}": executable file not found in $PATH')
    if "is not executable" in lower or ("exec" in lower and "permission denied" in lower):
        return PermissionDenied(f"exec: permission denied ({message})")
    if "not running" in lower or "is paused" in lower:
        return FailedPrecondition(f"crun {verb}: {message}")
    return Internal(f"crun {verb} failed with status {status}: {message or 'no message'}")


def _memfd(content: bytes) -> int:
    fd = os.memfd_create("crun", os.MFD_CLOEXEC)
    if content:
        os.write(fd, content)
    return fd


def _text(fd: int) -> str:
    return os.pread(fd, _MAX_TEXT, 0).decode(errors="replace")
