"""This process's standard streams as a container's: complete, and without a side effect on the user's descriptors.

O_NONBLOCK belongs to the open file description (open(2)), which this process shares with its parent: a shell whose
terminal becomes non-blocking loses output. So pipes and terminals are reopened through /proc/self/fd/N, which gives a
description of our own. Two kinds are not reopened: a regular file, whose offset has to be shared and which never
blocks, and a socket, for which each call passes MSG_DONTWAIT.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Callable

from kata.runtime.sandbox.stdio import PIECE, readable, widen, writable

#: Bytes written at once: a larger write to a regular file would block the event loop for too long.
_MAX_WRITE = 1 << 20


class _HostStream:
    """A descriptor for the bytes, and one to poll.

    The second one is a duplicate of the user's: a FIFO that is reopened after its last writer has closed it never
    reports the hangup to poll(2), while the user's description does.
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
    """`kata.runtime.sandbox.stdio.Source` of one of this process's descriptors, which the caller keeps.

    Args:
        fd: the descriptor.
        at_end: called at the end of input.

    Raises:
        OSError: the descriptor is closed, or cannot be reopened.
    """

    def __init__(self, fd: int, at_end: Callable[[], None] = lambda: None) -> None:
        super().__init__(fd, os.O_RDONLY)
        self._at_end = at_end

    async def read(self) -> bytes:
        """Implement Source: return the next bytes, at most PIECE; empty at the end."""
        data = b""
        while self._wait_fd >= 0:
            try:
                data = self._read()
                break
            except BlockingIOError:
                await readable(self._wait_fd)
            except OSError:
                break  # the terminal was hung up
        if not data:
            self._at_end()
        return data

    def _read(self) -> bytes:
        if self._socket is not None:
            return self._socket.recv(PIECE, socket.MSG_DONTWAIT)
        return os.read(self._fd, PIECE)


class HostSink:
    """`kata.runtime.sandbox.stdio.Sink` of one of this process's descriptors, which the caller keeps.

    Args:
        fd: the descriptor.
        failed: called once with the error when a write fails; later data is discarded.

    Attributes:
        ended: set when everything is written, or nothing more will be.

    Raises:
        OSError: the descriptor is closed, or cannot be reopened.
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
            # A pipe without a reader. The first write reports it, as SIGPIPE would.

    async def write(self, data: bytes) -> None:
        """Implement Sink: write all bytes, however slow the reader; an error goes to `failed`."""
        view = memoryview(data)
        while view and not self.ended.is_set():
            try:
                view = view[self._write(view[:_MAX_WRITE]) :]
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
        """Implement Sink: everything has been written."""
        self.close()

    def close(self) -> None:
        """Implement Sink: nothing more is written."""
        self.ended.set()
        if self._stream is not None:
            self._stream.close()
