"""A process's standard streams on the host, and the relay between them and the guest.

The relay moves bytes between the agent and file descriptors that a front end has opened. What is buffered is bounded: a
consumer that stops reading stops its own stream and no other.

A consumer's FIFO keeps the size that it was given: what is in it counts as taken, and is lost if its reader leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

#: Bytes moved at once, if the pipe holds so many: each move costs a round trip to the guest, which takes milliseconds.
PIECE = 1 << 20
#: Bytes given to a consumer at once.
_SLICE = 32 << 10
#: Bytes that wait for a consumer when the guest is asked for no more. More than a pipe holds: as long as there is less,
#: a process must be able to end although nobody reads.
_MAX_AHEAD = PIECE


class Sink(Protocol):
    """Where output goes."""

    async def write(self, data: bytes) -> None:
        """Write all of it, however long the consumer takes. Output to a consumer that is gone is discarded."""

    async def finish(self) -> None:
        """No more comes: let the consumer see the end, then close."""

    def close(self) -> None:
        """Close. Idempotent."""


class Source(Protocol):
    """Where input comes from."""

    async def read(self) -> bytes:
        """The next bytes; empty at the end."""

    def close(self) -> None:
        """Close. Idempotent."""


@dataclass(frozen=True)
class Stdio:
    """The streams of one process; None: nobody is interested (input: it is empty)."""

    stdin: Source | None = None
    stdout: Sink | None = None
    stderr: Sink | None = None
    terminal: bool = False

    def close(self) -> None:
        """Close all of them. Idempotent."""
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()


class FdSink:
    """Output to a descriptor, which it owns together with any `keep` descriptors.

    Args:
        keep: descriptors that only have to stay open, e.g. a FIFO's read end, so that the stream outlives a client that
            detaches.
    """

    def __init__(self, fd: int, *, keep: tuple[int, ...] = ()) -> None:
        os.set_blocking(fd, False)
        self._fds = (fd, *keep)
        self._gone = False

    async def write(self, data: bytes) -> None:
        """As `Sink.write`."""
        view = memoryview(data)
        while view and not self._gone:
            try:
                view = view[os.write(self._fds[0], view) :]
            except BlockingIOError:
                await writable(self._fds[0])
            except OSError:
                self._gone = True

    async def finish(self) -> None:
        """As `Sink.finish`."""
        self.close()

    def close(self) -> None:
        """Close all descriptors. Idempotent."""
        self._gone = True
        for fd in self._fds:
            os.close(fd)
        self._fds = ()


class FdSource:
    """Input from a descriptor, which it owns.

    A FIFO is opened without waiting for a writer: it is not readable until the first one comes, and at its end once
    the last one has gone (fifo(7)).
    """

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        widen(fd)
        self._fd = fd
        self._ending = asyncio.Event()

    async def read(self) -> bytes:
        """As `Source.read`."""
        while True:
            if not self._ending.is_set():
                await self._readable_or_ending()
            try:
                return os.read(self._fd, PIECE)
            except BlockingIOError:
                if self._ending.is_set():
                    return b""
            except OSError:
                return b""

    def finish(self) -> None:
        """Take what is there already and then end, even though a writer still has the FIFO open."""
        self._ending.set()

    async def _readable_or_ending(self) -> None:
        ending = asyncio.ensure_future(self._ending.wait())
        ready = asyncio.ensure_future(readable(self._fd))
        try:
            await asyncio.wait({ending, ready}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            ready.cancel()

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def widen(fd: int) -> None:
    """Let a pipe hold a whole piece, where that is allowed (F_SETPIPE_SZ, fcntl(2))."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIECE)


async def readable(fd: int) -> None:
    """Wait until a read from the descriptor would not block."""
    loop = asyncio.get_running_loop()
    await _ready(lambda wake: loop.add_reader(fd, wake), lambda: loop.remove_reader(fd))


async def writable(fd: int) -> None:
    """Wait until a write to the descriptor would not block."""
    loop = asyncio.get_running_loop()
    await _ready(lambda wake: loop.add_writer(fd, wake), lambda: loop.remove_writer(fd))


async def _ready(add: Callable[[Callable[[], None]], None], remove: Callable[[], object]) -> None:
    ready = asyncio.Event()
    try:
        add(ready.set)
    except PermissionError:
        return  # a regular file is always ready
    try:
        await ready.wait()
    finally:
        remove()


class OutputRelay:
    """Moves a process's output to its consumer.

    Args:
        read: asks the guest for the next output; empty at the end.
        sink: the consumer; None: output is discarded, so that the process never blocks on it.
        moved: called whenever the consumer has taken something.

    Attributes:
        received: bytes that the guest has given so far.
        taken: bytes that the consumer has taken of them.
    """

    def __init__(
        self, read: Callable[[], Awaitable[bytes]], sink: Sink | None, moved: Callable[[], None] = lambda: None
    ) -> None:
        self.received = 0
        self.taken = 0
        self._read = read
        self._sink = sink
        self._moved = moved
        self._waiters: list[tuple[int, asyncio.Event]] = []
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Move output until its end. Raises KataError as `read`."""
        fetching = asyncio.ensure_future(self._fetch())
        try:
            while data := await self._pieces.get():
                await self._give(data)
            await fetching
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
        if self._sink is not None:
            await self._sink.finish()

    async def _fetch(self) -> None:
        """Ask the guest for more while the consumer takes what there is, as long as that is not too much."""
        try:
            while data := await self._read():
                self.received += len(data)
                self._pieces.put_nowait(data)
                while self.received - self.taken >= _MAX_AHEAD:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._pieces.put_nowait(b"")

    async def _give(self, data: bytes) -> None:
        for start in range(0, len(data), _SLICE):
            piece = data[start : start + _SLICE]
            if self._sink is not None:
                await self._sink.write(piece)
            self.taken += len(piece)
            self._room.set()
            self._moved()
            for target, reached in self._waiters:
                if self.taken >= target:
                    reached.set()

    async def all_taken(self) -> None:
        """Wait until the consumer has taken what the guest has given up to now."""
        entry = (self.received, asyncio.Event())
        if self.taken < self.received:
            self._waiters.append(entry)
            await entry[1].wait()
            self._waiters.remove(entry)


async def relay_input(
    source: Source, write: Callable[[bytes], Awaitable[None]], close: Callable[[], Awaitable[None]]
) -> None:
    """Move input to a process until its end, then close the process's standard input. Raises as `write` and `close`."""
    while data := await source.read():
        await write(data)
    await close()
