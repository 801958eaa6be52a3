"""A container, or a process in one, begun before anybody asks for it."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import shutil
import time
from collections.abc import Callable

from kata.agent.crun import Call

# One that was begun a moment ago may still load its libraries; seconds.
_LOADING = 5.0
_POLL = 0.002


class Waiting:
    """crun, started before it is known what for: it waits for the description, which is to come by a FIFO.

    In an emulated guest half of what crun takes is its execution and the loading of its libraries, and that is over
    before it reads the first byte.

    Args:
        name: tells it from others.
        fifo: its path, in a directory of its own, which is made.
        start: runs crun, which is to read that path.

    Attributes:
        call: to be finished after `tell`.
    """

    def __init__(self, name: str, fifo: str, start: Callable[[], Call]) -> None:
        self.name = name
        self._fifo = fifo
        self._directory = os.path.dirname(fifo)
        os.makedirs(self._directory, mode=0o700)
        try:
            os.mkfifo(fifo, 0o600)
            self.call = start()
        except BaseException:
            shutil.rmtree(self._directory)
            raise

    async def tell(self, description: bytes, again: str = "") -> bool:
        """Have it do what is described; False, and it is ended, if it is too late for that.

        Args:
            again: a file with the same content for a crun that reads the path twice, and keeps the directory: whoever
                deletes the container removes that.
        """
        told = False
        try:
            fifo = await self._open()
            try:
                if again:
                    os.symlink(again, f"{self._fifo}.new")
                    os.rename(f"{self._fifo}.new", self._fifo)
                if len(description) > select.PIPE_BUF:
                    fcntl.fcntl(fifo, fcntl.F_SETPIPE_SZ, len(description))
                told = os.write(fifo, description) == len(description)
            finally:
                os.close(fifo)
        except OSError:
            pass  # it has died, or the description is larger than any pipe
        if not told:
            self.end()
        elif not again:
            shutil.rmtree(self._directory)
        return told

    async def _open(self) -> int:
        """The writing end, as soon as crun is at its reading end. Raises OSError: it never gets there."""
        deadline = time.monotonic() + _LOADING
        while True:
            try:
                # Without waiting in the kernel: for one that has died that would be for ever.
                return os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.ENXIO or self.call.ended or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_POLL)

    def end(self) -> None:
        """Nobody will ask for it."""
        self.call.kill()
        shutil.rmtree(self._directory)
