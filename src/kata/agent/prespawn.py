"""A pre-spawned container, or a pre-spawned process in one."""

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

#: A crun that has just been spawned may still be loading its libraries.
_START_TIMEOUT_S = 5.0
_POLL_S = 0.002


class PreSpawned:
    """A crun that waits for the description of its container or process, which comes through a FIFO.

    In an emulated guest half of crun's time is spent in execve(2) and loading libraries, before it reads the first
    byte.

    Args:
        name: distinguishes it from others.
        fifo: path of the FIFO, in a directory of its own; both are made.
        start: runs crun, which is to read that path.

    Attributes:
        call: to be finished after `describe`.

    Raises:
        OSError: FIFO or process cannot be made.
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

    async def describe(self, description: bytes, again: str = "") -> bool:
        """Write the description, which starts the work.

        Args:
            description: the JSON that it reads.
            again: a file with the same content, for a crun that reads the path twice; the directory then stays, and
                it is removed with the container.

        Returns:
            False if it has died; it is then discarded.
        """
        delivered = False
        try:
            fifo = await self._open()
            try:
                if again:
                    os.symlink(again, f"{self._fifo}.new")
                    os.rename(f"{self._fifo}.new", self._fifo)
                if len(description) > select.PIPE_BUF:
                    fcntl.fcntl(fifo, fcntl.F_SETPIPE_SZ, len(description))
                delivered = os.write(fifo, description) == len(description)
            finally:
                os.close(fifo)
        except OSError:
            pass  # it has died, or the description is larger than any pipe
        if not delivered:
            self.discard()
        elif not again:
            shutil.rmtree(self._directory)
        return delivered

    async def _open(self) -> int:
        """Open the writing end, as soon as crun has opened the reading end.

        Raises:
            OSError: crun has died, or does not open it in time.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                # A blocking open would wait for ever for a crun that has died.
                return os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.ENXIO or self.call.ended or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_POLL_S)

    def discard(self) -> None:
        """Kill it, unused."""
        self.call.kill()
        shutil.rmtree(self._directory)
