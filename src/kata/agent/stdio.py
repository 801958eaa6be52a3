"""A process's standard streams: pipes or a terminal, read and written without blocking the agent.

End of file is empty data. It comes when the last process that holds the pipe or terminal has let go of it, which may
be a child that outlives the one that was started.
"""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import os
import socket
import struct
import termios

from kata.agent.crun import Streams
from kata.errors import DeadlineExceeded, FailedPrecondition, Internal, Unavailable

#: Bytes of a pipe: what one call can return, and a call costs an emulated guest about 3 ms.
PIPE_SIZE = 1024 * 1024
#: Bytes of one read: more would only be allocated and freed, as a pipe cannot fill it.
MAX_READ = PIPE_SIZE

_CONSOLE_TIMEOUT_S = 10.0


class Output:
    """The reading end of a pipe or terminal. Owns `fd`."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._lock = asyncio.Lock()
        self._waiter: asyncio.Future[bool] | None = None
        #: Bytes read so far, and who waits until it is how many.
        self._taken = 0
        self._drains: list[tuple[int, asyncio.Future[bool]]] = []

    @property
    def awaited(self) -> bool:
        """Whether somebody reads, or waits for others to."""
        return self._lock.locked() or bool(self._drains)

    async def drained(self) -> None:
        """Wait until what is in it now has been read, or it is closed."""
        if self._fd < 0:
            return
        (unread,) = struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)))
        if unread:
            waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._drains.append((self._taken + unread, waiter))
            await waiter

    def _drain(self) -> None:
        for target, waiter in self._drains:
            if self._fd < 0 or self._taken >= target:
                _resolve(waiter, True)
        self._drains = [drain for drain in self._drains if not drain[1].done()]

    async def read(self, limit: int) -> bytes:
        """Return at most `limit` bytes as soon as there are any; b"" at the end, and from then on.

        Raises:
            OSError: reading fails.
        """
        async with self._lock:
            while self._fd >= 0:
                try:
                    data = os.read(self._fd, min(limit, MAX_READ))
                except BlockingIOError:
                    if not await self._readable():
                        self.close()
                    continue
                except OSError as error:
                    # A terminal whose other side is closed gives EIO instead of end of file.
                    if error.errno != errno.EIO:
                        raise
                    data = b""
                if data:
                    self._taken += len(data)
                    self._drain()
                else:
                    self.close()
                return data
        return b""

    async def _readable(self) -> bool:
        """Wait for data or end of file; False on close."""
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        loop.add_reader(self._fd, _resolve, waiter, True)
        try:
            return bool(await waiter)
        finally:
            self._waiter = None
            if self._fd >= 0:
                loop.remove_reader(self._fd)

    def close(self) -> None:
        """Give the descriptor back; a read in progress returns b""."""
        if self._fd >= 0:
            if self._waiter:
                asyncio.get_running_loop().remove_reader(self._fd)
                _resolve(self._waiter, False)
            os.close(self._fd)
            self._fd = -1
            self._drain()


class Input:
    """The writing end of a pipe or terminal. Owns `fd`."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._lock = asyncio.Lock()
        self._waiter: asyncio.Future[bool] | None = None

    async def write(self, data: bytes) -> int:
        """Write all of `data`, waiting for the process to read it; return its length.

        Raises:
            FailedPrecondition: the stream is closed, by the host or by the process.
            OSError: writing fails for another reason.
        """
        async with self._lock:
            view = memoryview(data)
            while view:
                if self._fd < 0:
                    raise FailedPrecondition("standard input is closed")
                try:
                    view = view[os.write(self._fd, view) :]
                except BlockingIOError:
                    await self._writable()
                except OSError as error:
                    if error.errno not in (errno.EPIPE, errno.EIO):
                        raise
                    raise FailedPrecondition("the process has closed its standard input") from error
        return len(data)

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        loop.add_writer(self._fd, _resolve, waiter, True)
        try:
            await waiter
        finally:
            self._waiter = None
            if self._fd >= 0:
                loop.remove_writer(self._fd)

    async def finish(self) -> None:
        """Close after pending writes."""
        async with self._lock:
            self.close()

    def close(self) -> None:
        """Give the descriptor back; a write in progress fails."""
        if self._fd >= 0:
            if self._waiter:
                asyncio.get_running_loop().remove_writer(self._fd)
                _resolve(self._waiter, False)
            os.close(self._fd)
            self._fd = -1


class Stdio:
    """The agent's ends of one process's streams, and the process's ends until it has them.

    Use: `open_pipes`, `open_terminal` or `open_pty`, pass `streams` on, then `handed_over`; `close` at the very end.
    """

    def __init__(self) -> None:
        self.streams = Streams()
        self.stdin: Input | None = None
        self.stdout: Output | None = None
        self.stderr: Output | None = None
        self._terminal = False
        self._master = -1
        self._console: socket.socket | None = None
        self._theirs: list[int] = []

    @classmethod
    def open_pipes(cls, pipe_size: int = 0) -> Stdio:
        """Three pipes; `pipe_size` bytes each, or PIPE_SIZE. Raises OSError."""
        self = cls()
        try:
            theirs_in, ours_in = self._pipe(pipe_size)
            self.stdin = Input(ours_in)
            self._theirs.append(theirs_in)
            ours_out, theirs_out = self._pipe(pipe_size)
            self.stdout = Output(ours_out)
            self._theirs.append(theirs_out)
            ours_err, theirs_err = self._pipe(pipe_size)
            self.stderr = Output(ours_err)
            self._theirs.append(theirs_err)
        except BaseException:
            self.close()
            raise
        self.streams = Streams(theirs_in, theirs_out, theirs_err)
        return self

    @classmethod
    def open_terminal(cls, socket_path: str) -> Stdio:
        """A terminal that the runtime makes, and sends through the console socket `socket_path`. Raises OSError."""
        self = cls()
        self._terminal = True
        self._console = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._console.bind(socket_path)
            self._console.listen(1)
            self._console.setblocking(False)
        except BaseException:
            self.close()
            raise
        self.streams = Streams(console_socket=socket_path)
        return self

    @classmethod
    def open_pty(cls) -> tuple[Stdio, str]:
        """A terminal of the guest's own, and the path by which a process opens it. Raises OSError."""
        self = cls()
        self._terminal = True
        self._master, slave = os.openpty()
        self._theirs.append(slave)
        self.stdin = Input(fcntl.fcntl(self._master, fcntl.F_DUPFD_CLOEXEC, 3))
        self.stdout = Output(fcntl.fcntl(self._master, fcntl.F_DUPFD_CLOEXEC, 3))
        return self, os.ttyname(slave)

    @staticmethod
    def _pipe(size: int) -> tuple[int, int]:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, size or PIPE_SIZE)
        except OSError:
            # A preference: beyond the user's limit the pipe keeps its default size.
            pass
        return read_end, write_end

    async def handed_over(self) -> None:
        """The runtime has returned: the process has its ends, or its terminal waits in the socket.

        Raises:
            DeadlineExceeded: the runtime sent nothing in time.
            Internal: it sent something else.
        """
        self._close_theirs()
        if self._console:
            self._master = await self._receive_master(self._console)
            self._close_console()
            self.stdin = Input(fcntl.fcntl(self._master, fcntl.F_DUPFD_CLOEXEC, 3))
            self.stdout = Output(fcntl.fcntl(self._master, fcntl.F_DUPFD_CLOEXEC, 3))

    @staticmethod
    async def _receive_master(console: socket.socket) -> int:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONSOLE_TIMEOUT_S):
                connection, _ = await loop.sock_accept(console)
                with connection:
                    waiter: asyncio.Future[bool] = loop.create_future()
                    loop.add_reader(connection, _resolve, waiter, True)
                    try:
                        await waiter
                    finally:
                        loop.remove_reader(connection)
                    ancillary = connection.recvmsg(4096, socket.CMSG_SPACE(array.array("i").itemsize))[1]
        except TimeoutError:
            raise DeadlineExceeded("the container runtime did not send a terminal") from None
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fd = int(struct.unpack_from("i", data)[0])
                os.set_inheritable(fd, False)
                return fd
        raise Internal("the container runtime sent no terminal")

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size in characters.

        Raises:
            Unavailable: there is no terminal.
        """
        if self._master < 0:
            raise Unavailable("the process has no terminal")
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def close_stdin(self) -> None:
        """Close the process's standard input. A terminal stays open, as in Kata."""
        if self.stdin and not self._terminal:
            await self.stdin.finish()

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Standard output and standard error, as far as there are any."""
        return tuple(output for output in (self.stdout, self.stderr) if output)

    def close(self) -> None:
        """Give everything back. Idempotent."""
        self._close_theirs()
        self._close_console()
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream:
                stream.close()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def _close_theirs(self) -> None:
        while self._theirs:
            os.close(self._theirs.pop())

    def _close_console(self) -> None:
        if self._console:
            self._console.close()
            self._console = None
            if self.streams.console_socket:
                os.unlink(self.streams.console_socket)


def _resolve(waiter: asyncio.Future[bool], value: bool) -> None:
    if not waiter.done():
        waiter.set_result(value)
