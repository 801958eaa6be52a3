"""containerd's stdio addresses: FIFO paths, and the URIs `fifo://`, `file://` and `binary://`.

A FIFO for output is opened for writing only, once it has a reader: if it were opened for both, what is written before
the reader comes would be lost when the writer closes first. Its read end is then opened as well, so that the stream
outlives a client that detaches. A FIFO for input is never held open for writing: the client ends it.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import stat
from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote, urlsplit

from kata.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound
from kata.runtime.sandbox.stdio import FdSink, FdSource, Sink, Stdio, readable

_MIN_RETRY_S = 0.001
_MAX_RETRY_S = 0.05
#: Seconds for a logging binary to get ready, and to exit once its input has ended.
_BINARY_READY_TIMEOUT_S = 10.0
_BINARY_EXIT_TIMEOUT_S = 10.0
_BINARY_KILL_TIMEOUT_S = 1.0


class FifoSink:
    """Output to a FIFO whose reader may not have opened it yet."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._opening = asyncio.create_task(self._open(), name=f"open {path}")

    async def _open(self) -> FdSink:
        delay = _MIN_RETRY_S
        while True:
            try:
                fd = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
            else:
                return FdSink(fd, keep=(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC),))
            await asyncio.sleep(delay)
            delay = min(delay * 2, _MAX_RETRY_S)

    async def write(self, data: bytes) -> None:
        """As `Sink.write`; waits for the FIFO's reader."""
        try:
            sink = await asyncio.shield(self._opening)
        except OSError:
            return  # the FIFO was removed: there will be no reader
        await sink.write(data)

    async def finish(self) -> None:
        """As `Sink.finish`; waits for the FIFO's reader."""
        # A reader waits for a writer to come and go, even if there was no output.
        try:
            await asyncio.shield(self._opening)
        except OSError:
            pass
        self.close()

    def close(self) -> None:
        """Close. Idempotent."""
        if not self._opening.done():
            self._opening.cancel()
        elif not self._opening.cancelled() and self._opening.exception() is None:
            self._opening.result().close()


class BinarySink(FdSink):
    """Output to a logging binary; the last of its streams waits for the binary to exit."""

    def __init__(self, fd: int, logger: LoggingBinary) -> None:
        super().__init__(fd)
        self._logger = logger
        logger.streams += 1
        self._counted = True

    async def finish(self) -> None:
        """As `Sink.finish`; waits for the binary to exit."""
        self.close()
        await self._logger.ended()

    def close(self) -> None:
        """Close. Idempotent."""
        super().close()
        if self._counted:
            self._counted = False
            self._logger.let_go()


class LoggingBinary:
    """A containerd logging binary: reads standard output on fd 3 and standard error on fd 4, closes fd 5 when ready."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._end: asyncio.Task[None] | None = None
        self.streams = 0

    def let_go(self) -> None:
        """One of its streams has ended; after the last one it has to exit."""
        self.streams -= 1
        if self.streams == 0:
            self._end = asyncio.create_task(self._wait(), name=f"logging binary {self._pid}")

    async def ended(self) -> None:
        """Wait for it to exit, if all of its streams have ended."""
        if self._end is not None:
            await asyncio.shield(self._end)

    async def _wait(self) -> None:
        """Wait for it to exit; kill it if it does not."""
        if not await self._exits(_BINARY_EXIT_TIMEOUT_S):
            await self.kill()

    async def _exits(self, timeout: float) -> bool:
        pidfd = os.pidfd_open(self._pid)
        try:
            async with asyncio.timeout(timeout):
                await readable(pidfd)
        except TimeoutError:
            return False
        finally:
            os.close(pidfd)
        self._reap()
        return True

    def _reap(self) -> None:
        os.waitpid(self._pid, 0)

    async def kill(self) -> None:
        """End it at once. One that hangs in the kernel is left to the ledger."""
        os.kill(self._pid, signal.SIGKILL)
        await self._exits(_BINARY_KILL_TIMEOUT_S)


async def open_stdio(stdin: str, stdout: str, stderr: str, *, terminal: bool, environment: Mapping[str, str]) -> Stdio:
    """Open a process's streams as containerd names them; "" means none.

    Args:
        stdin: a FIFO.
        stdout: a FIFO, a log file or a logging binary.
        stderr: a FIFO or a log file.
        terminal: whether the process has a terminal, which has no standard error.
        environment: added to a logging binary's: container id, namespace, and the sandbox's marker.

    Raises:
        NotFound: a FIFO or binary is not there.
        InvalidArgument: the scheme is unknown, or the file is not what the scheme says.
        FailedPrecondition: a log file cannot be opened.
        DeadlineExceeded: a logging binary was not ready in time.
    """
    source = _open_input(stdin)
    opened: list[Sink | None] = []
    try:
        if urlsplit(stdout).scheme == "binary":
            opened += await _start_binary(stdout, environment)
        else:
            opened.append(_open_output(stdout))
            opened.append(_open_output("" if terminal else stderr))
    except BaseException:
        for stream in (source, *opened):
            if stream is not None:
                stream.close()
        raise
    return Stdio(source, opened[0], opened[1], terminal)


def _path(address: str) -> tuple[str, str]:
    parts = urlsplit(address)
    if not parts.scheme:
        return "fifo", address
    if parts.scheme not in ("fifo", "file", "binary"):
        raise InvalidArgument(f"stdio {address}: unknown scheme {parts.scheme!r} (fifo, file or binary)")
    return parts.scheme, unquote(parts.path)


def _require_fifo(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise NotFound(f"stdio {path} does not exist") from None
    if not stat.S_ISFIFO(mode):
        raise InvalidArgument(f"stdio {path} is not a FIFO")


def _open_input(address: str) -> FdSource | None:
    if not address:
        return None
    scheme, path = _path(address)
    if scheme != "fifo":
        raise InvalidArgument(f"standard input {address} is not a FIFO")
    _require_fifo(path)
    return FdSource(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def _open_output(address: str) -> Sink | None:
    if not address:
        return None
    scheme, path = _path(address)
    if scheme == "binary":
        raise InvalidArgument(f"stdio {address}: a logging binary takes both streams; name it as standard output")
    if scheme == "file":
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            return FdSink(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644))
        except OSError as error:
            raise FailedPrecondition(f"cannot open log file {path}: {error.strerror}") from error
    _require_fifo(path)
    return FifoSink(path)


async def _start_binary(address: str, environment: Mapping[str, str]) -> tuple[BinarySink, BinarySink]:
    """Start a logging binary; query parameters are its arguments: a name, then its value unless that is empty.

    Raises:
        NotFound: it cannot be executed.
        DeadlineExceeded: it does not report that it is ready.
    """
    _, path = _path(address)
    arguments = [path]
    for name, value in parse_qsl(urlsplit(address).query, keep_blank_values=True):
        arguments += [name, value] if value else [name]
    out_read, out_write = os.pipe2(os.O_CLOEXEC)
    err_read, err_write = os.pipe2(os.O_CLOEXEC)
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    theirs = (out_read, err_read, ready_write)
    logger = None
    try:
        try:
            logger = LoggingBinary(_spawn_with_fds(arguments, theirs, environment))
        finally:
            for fd in theirs:
                os.close(fd)
        async with asyncio.timeout(_BINARY_READY_TIMEOUT_S):
            await readable(ready_read)
    except BaseException as error:
        # Also if the call that wants it is cancelled.
        if logger:
            await logger.kill()
        os.close(out_write)
        os.close(err_write)
        if isinstance(error, TimeoutError):
            seconds = f"{_BINARY_READY_TIMEOUT_S:.0f} s"
            raise DeadlineExceeded(f"logging binary {path} was not ready within {seconds}") from None
        if isinstance(error, OSError):
            raise NotFound(f"cannot run logging binary {path}: {error.strerror}") from error
        raise
    finally:
        os.close(ready_read)
    return BinarySink(out_write, logger), BinarySink(err_write, logger)


def _spawn_with_fds(arguments: list[str], fds: tuple[int, int, int], environment: Mapping[str, str]) -> int:
    """Start a program with the three descriptors as 3, 4 and 5; returns its process id."""
    # Copies above the targets, so that none is overwritten before it has been duplicated.
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in fds]
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        return os.posix_spawn(
            arguments[0],
            arguments,
            {"PATH": os.environ.get("PATH", os.defpath), **environment},
            file_actions=[
                *((os.POSIX_SPAWN_DUP2, null, target) for target in (0, 1, 2)),
                *((os.POSIX_SPAWN_DUP2, fd, target) for fd, target in zip(copies, (3, 4, 5), strict=True)),
            ],
            setsid=True,
        )
    finally:
        for fd in (*copies, null):
            os.close(fd)
