"""crun, which makes the containers: its command lines, and its errors as ours.

crun gives its own standard streams to what it starts, so they are the container's here, and its messages come through a
log file instead. Only what goes wrong at the very last, when the program is executed, is said on the container's
standard error, where there is nobody else left to tell: in plain text, which is why the log is plain text as well. The
status is 1 then, as with runc. A call is one process: nothing is asked of crun that a few system calls can do.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from kata.agent.reaper import Reaper
from kata.errors import FailedPrecondition, Internal, KataError, NotFound, PermissionDenied

# Emulated guests are slow, but no call takes a tenth of this.
_TIMEOUT = 60.0
_MAX_TEXT = 64 * 1024
_MISSING = re.compile("executable file `(.*)` not found", re.DOTALL | re.IGNORECASE)

#: The kernel's own (Documentation/admin-guide/cgroup-v2.rst, cpu.max).
_DEFAULT_PERIOD_US = 100_000


class Streams(NamedTuple):
    """What a new process gets: three descriptors, or a console socket's path for a terminal."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    console_socket: str | None = None


_NO_STREAMS = Streams()


class Runtime(Protocol):
    """What the agent needs of a container runtime. Every method may raise KataError; none leaves a helper behind."""

    async def create(self, container_id: str, bundle: str, streams: Streams) -> int:
        """Make the container, its first process waiting to be started; returns that process's id."""

    async def start(self, container_id: str, *, hooks: bool) -> None:
        """Let the first process run its program; `hooks`: the spec has some for after that (`poststart`)."""

    async def exec(self, container_id: str, process: Mapping[str, Any], streams: Streams) -> int:
        """Run one more process (OCI `process`) in the container; returns its id."""

    async def update(self, container_id: str, resources: Mapping[str, Any]) -> None:
        """Apply OCI `linux.resources`."""

    async def delete(self, container_id: str) -> None:
        """Remove the container, killing what is left of it. One that is gone already is no error."""


class Crun:
    """`Runtime` by crun.

    Args:
        reaper: starts crun and adopts what it leaves behind.
        root: crun's state directory.
    """

    def __init__(self, reaper: Reaper, root: str) -> None:
        self._reaper = reaper
        self._root = root

    async def create(self, container_id: str, bundle: str, streams: Streams) -> int:
        return await self._start("create", streams, [f"--bundle={bundle}", container_id], {})

    async def start(self, container_id: str, *, hooks: bool) -> None:
        if hooks:
            await self._call("start", [container_id])
        else:
            _open_gate(container_id, f"{self._root}/{container_id}/exec.fifo")

    async def exec(self, container_id: str, process: Mapping[str, Any], streams: Streams) -> int:
        options = ["--detach", container_id]
        return await self._start("exec", streams, options, {"--process": json.dumps(process).encode()})

    async def update(self, container_id: str, resources: Mapping[str, Any]) -> None:
        cpu = resources.get("cpu") or {}
        if (cpu.get("quota") or 0) < 0 and not cpu.get("period"):
            # crun 1.8 lifts a quota only if it is told a period, too.
            resources = {**resources, "cpu": {**cpu, "period": _DEFAULT_PERIOD_US}}
        await self._call("update", [container_id], {"--resources": json.dumps(resources).encode()})

    async def delete(self, container_id: str) -> None:
        if _is_directory(f"{self._root}/{container_id}"):
            await self._call("delete", ["--force", container_id])

    async def _start(self, verb: str, streams: Streams, options: Sequence[str], files: dict[str, bytes]) -> int:
        """A call that leaves a process behind, whose id it returns. The caller is inside `Reaper.adopting`."""
        if streams.console_socket:
            options = [f"--console-socket={streams.console_socket}", *options]
        return int(await self._call(verb, options, files | {"--pid-file": b""}, streams))

    async def _call(
        self,
        verb: str,
        options: Sequence[str],
        files: Mapping[str, bytes] | None = None,
        streams: Streams = _NO_STREAMS,
    ) -> str:
        """Run crun once; returns what it wrote to the last of `files`.

        The files that it reads and writes (option to content) are memory of the agent, so nothing is left on disk.
        """
        memory = {"--log": _memfd(b"")}
        try:
            for option, content in (files or {}).items():
                memory[option] = _memfd(content)
            paths = {option: f"/proc/{os.getpid()}/fd/{fd}" for option, fd in memory.items()}
            log = paths.pop("--log")
            argv = ["crun", f"--root={self._root}", "--cgroup-manager=cgroupfs", f"--log=file:{log}"]
            argv += [verb, *(f"{option}={path}" for option, path in paths.items()), *options]
            pid, exited = self._reaper.spawn(argv, stdin=streams.stdin, stdout=streams.stdout, stderr=streams.stderr)
            status = await self._reaper.finish(pid, exited, f"crun {verb}", _TIMEOUT)
            if status:
                raise explain(verb, status, _text(memory["--log"]))
            return _text(list(memory.values())[-1])
        finally:
            for fd in memory.values():
                os.close(fd)


def _open_gate(container_id: str, path: str) -> None:
    """Do what `crun start` does, which in an emulated guest takes less than a tenth of executing it.

    The container's first process waits in a read from this FIFO (libcrun, status.c). crun removes it once the waiting
    is over, so that a container cannot be started twice.

    Raises:
        FailedPrecondition: nobody waits there.
    """
    try:
        # Without waiting: the process has had it open since it exists, or is dead.
        gate = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENXIO):
            raise
        raise FailedPrecondition(f"container {container_id} does not wait to be started") from None
    try:
        os.unlink(path)
        os.write(gate, b"\0")
    except BrokenPipeError:
        raise FailedPrecondition(f"container {container_id} has ended before it was started") from None
    finally:
        os.close(gate)


def explain(verb: str, status: int, log: str) -> KataError:
    """The error that crun's log stands for. The texts that container engines look for are runc's, hence the quotes."""
    message = log.strip().rpartition("\n")[2]  # what comes before are warnings
    lower = message.lower()
    # The name is the container's, and may contain anything.
    if missing := _MISSING.search(log):
        return NotFound(f'exec: "{missing[1]}": executable file not found in $PATH')
    if "open executable" in lower or ("exec" in lower and "permission denied" in lower):
        return PermissionDenied(f"exec: permission denied ({message})")
    if "not running" in lower or "is paused" in lower:
        return FailedPrecondition(f"crun {verb}: {message}")
    return Internal(f"crun {verb} failed with status {status}: {message or 'no message'}")


def _is_directory(path: str) -> bool:
    return os.path.isdir(path)


def _memfd(content: bytes) -> int:
    fd = os.memfd_create("crun", os.MFD_CLOEXEC)
    if content:
        os.write(fd, content)
    return fd


def _text(fd: int) -> str:
    return os.pread(fd, _MAX_TEXT, 0).decode(errors="replace")
