"""This process's standard streams as a container's: exact, and without a trace on the user's descriptors.

O_NONBLOCK belongs to the open file description, which we share with whoever started us: a shell whose terminal turns
non-blocking loses output. So pipes and terminals are opened once more (/proc/self/fd/N), which gives a description of
our own. What cannot be opened again without harm is used as it is: a regular file (its offset is shared, and it never
blocks), and a socket (each call says MSG_DONTWAIT).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Callable

from kata.runtime.sandbox.stdio import PIECE, readable, widen, writable

#: One write to a regular file: larger ones would hold up everything else for as long as the disk takes.
_WRITE_SIZE = 1 << 20


class _HostStream:
    """A descriptor to move bytes on and one to wait on.

    The second one is the user's own: a FIFO that is opened anew after its last writer has left never tells of that
    end to those who poll it, while the user's description does.
    """

    def __init__(self, fd: int, flags: int) -> None:
        kind = os.fstat(fd).st_mode
        self._socket = socket.socket(fileno=os.dup(fd)) if stat.S_ISSOCK(kind) else None
        self._wait_fd = os.dup(fd)
        widen(fd)
        if self._socket is not None:
            self._fd = self._socket.fileno()
        elif stat.S_ISREG(kind):
            self._fd = os.dup(fd)
        else:
            try:
                self._fd = os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            except BaseException:
                os.close(self._wait_fd)
                raise

    def close(self) -> None:
        if self._wait_fd < 0:
            return
        os.close(self._wait_fd)
        self._wait_fd = -1
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self._fd)


class HostSource(_HostStream):
    """`kata.runtime.sandbox.stdio.Source` of one of this process's descriptors, which stays the caller's.

    Args:
        at_end: called when there is nothing more to read.

    Raises:
        OSError: the descriptor is closed, or cannot be opened again.
    """

    def __init__(self, fd: int, at_end: Callable[[], None] = lambda: None) -> None:
        super().__init__(fd, os.O_RDONLY)
        self._at_end = at_end

    async def read(self) -> bytes:
        data = b""
        while self._wait_fd >= 0:
            try:
                data = self._read()
                break
            except BlockingIOError:
                await readable(self._wait_fd)
            except OSError:
                break  # a terminal that was hung up
        if not data:
            self._at_end()
        return data

    def _read(self) -> bytes:
        if self._socket is not None:
            return self._socket.recv(PIECE, socket.MSG_DONTWAIT)
        return os.read(self._fd, PIECE)


class HostSink:
    """`kata.runtime.sandbox.stdio.Sink` of one of this process's descriptors, which stays the caller's.

    Args:
        failed: told why nothing more can be written, once; what comes later is thrown away.

    Attributes:
        ended: set when all has been written, or nothing more will be.

    Raises:
        OSError: the descriptor is closed, or cannot be opened again.
    """

    def __init__(self, fd: int, failed: Callable[[OSError], None]) -> None:
        self.ended = asyncio.Event()
        self._failed = failed
        self._stream: _HostStream | None = None
        try:
            self._stream = _HostStream(fd, os.O_WRONLY)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            # A pipe whose reader has left already: told when something is written, as a write would.

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self.ended.is_set():
            try:
                view = view[self._write(view[:_WRITE_SIZE]) :]
            except BlockingIOError:
                assert self._stream is not None
                await writable(self._stream._wait_fd)
            except OSError as error:
                self.close()
                self._failed(error)

    def _write(self, view: memoryview) -> int:
        if self._stream is None:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        if self._stream._socket is not None:
            return self._stream._socket.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self._stream._fd, view)

    async def finish(self) -> None:
        self.close()

    def close(self) -> None:
        self.ended.set()
        if self._stream is not None:
            self._stream.close()
