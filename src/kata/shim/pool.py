"""The pool: keeps a number of processes in standby, and makes another one when one was taken.

It does nothing else, so nothing ends with it but what nobody uses yet.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Callable

from kata.config.settings import Config
from kata.shim import standby

log = logging.getLogger(__name__)

#: Seconds from one being taken to making the next: the sandbox that took it is starting, and needs the processors.
_PAUSE_S = 1.0
#: Seconds after one that failed.
_PAUSE_AFTER_FAILURE_S = 10.0
#: Seconds for all to end when the pool does.
_END_S = 5.0


class Pool:
    """Processes in standby.

    Args:
        number: how many to keep.
        progress: told in one sentence each what changes.
    """

    def __init__(self, config: Config, number: int, progress: Callable[[str], None]) -> None:
        self._config = config
        self._number = number
        self._progress = progress
        self._waiting: dict[int, int] = {}
        self._ready: set[int] = set()
        self._next = 0.0
        self._home = standby.surroundings()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; then nothing is left but sandboxes."""
        wake_reader, wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        ended = []
        signal.set_wakeup_fd(wake_writer)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.append(True))
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            while not ended:
                self._reap()
                now = time.monotonic()
                if len(self._waiting) < self._number and now >= self._next:
                    self._fork((wake_reader, wake_writer))
                    continue
                pause = max(0.0, self._next - now) if len(self._waiting) < self._number else None
                readable, _, _ = select.select([wake_reader, *self._waiting], [], [], pause)
                for fd in readable:
                    if fd == wake_reader:
                        os.read(wake_reader, 512)
                    else:
                        self._hear(fd)
        finally:
            self._end()

    def _fork(self, not_the_childs: tuple[int, ...]) -> None:
        pool = os.getpid()
        reader, writer = os.pipe2(os.O_CLOEXEC)
        child = os.fork()
        if child:
            os.close(writer)
            self._waiting[reader] = child
            return
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            for fd in (reader, *not_the_childs, *self._waiting):
                os.close(fd)
            standby.run(self._config, pool, writer, self._home)
            status = 0
        except BaseException:
            log.exception("a process in standby failed")
        finally:
            os._exit(status)

    def _hear(self, fd: int) -> None:
        """A process in standby has said something, or has ended."""
        said = os.read(fd, 16)
        if said == standby.IS_READY:
            self._ready.add(fd)
            self._progress(f"{len(self._ready)} of {self._number} ready")
            return
        os.close(fd)
        self._ready.discard(fd)
        child = self._waiting.pop(fd)
        taken = standby.IS_TAKEN in said
        self._next = time.monotonic() + (_PAUSE_S if taken else _PAUSE_AFTER_FAILURE_S)
        self._progress(f"process {child} {'has a sandbox' if taken else 'has ended'}: making another one")

    def _reap(self) -> None:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return

    def _end(self) -> None:
        """Have all in standby give back what they hold."""
        children = list(self._waiting.values())
        for child in children:
            _signal(child, signal.SIGTERM)
        deadline = time.monotonic() + _END_S
        while children and time.monotonic() < deadline:
            time.sleep(0.01)
            children = [child for child in children if not _has_ended(child)]
        for child in children:
            # Its machine dies with it; the directory is for `kata gc`.
            _signal(child, signal.SIGKILL)


def _signal(child: int, number: int) -> None:
    try:
        os.kill(child, number)
    except ProcessLookupError:
        return


def _has_ended(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True
