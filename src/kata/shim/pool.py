"""The pool: keeps a number of processes in standby, and forks another one when one was taken.

It does nothing else, so what dies with it is only what no sandbox uses yet.
"""

from __future__ import annotations

import glob
import logging
import os
import secrets
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from kata.runtime.config.settings import Config
from kata.runtime.ledger.journal import STATE_ROOT, Ledger, Locked
from kata.shim import standby
from kata.shim.handover import PREFIX

log = logging.getLogger(__name__)

#: Seconds from one being taken to making the next: the sandbox that took it is starting, and needs the CPUs.
_PAUSE_S = 1.0
#: Seconds after one that failed.
_PAUSE_AFTER_FAILURE_S = 10.0
#: Seconds for all to exit when the pool ends.
_EXIT_TIMEOUT_S = 5.0
#: Seconds for a process that was killed to be gone.
_KILL_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class _Member:
    """A process in standby, and its state directory."""

    pid: int
    directory: str


class Pool:
    """Processes in standby.

    Args:
        config: of their VMs.
        number: how many to keep.
        progress: called with a sentence about each change.
    """

    def __init__(self, config: Config, number: int, progress: Callable[[str], None]) -> None:
        self._config = config
        self._number = number
        self._progress = progress
        self._waiting: dict[int, _Member] = {}
        self._ready: set[int] = set()
        self._next = 0.0
        self._home = standby.surroundings()

    def run(self) -> None:
        """Keep the processes until SIGTERM or SIGINT; then only those that have a sandbox are left."""
        wake_reader, wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        ended = []
        for directory in glob.glob(f"{STATE_ROOT}/{PREFIX}*"):
            _give_back(directory, 0)  # if a pool was killed with all its processes
        signal.set_wakeup_fd(wake_writer)
        for number in standby.END_SIGNALS:
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

    def _fork(self, inherited: tuple[int, ...]) -> None:
        pool = os.getpid()
        directory = f"{STATE_ROOT}/{PREFIX}{secrets.token_hex(6)}"
        reader, writer = os.pipe2(os.O_CLOEXEC)
        # A child that is ended before it handles signals would leave its directory: it unblocks them itself.
        signal.pthread_sigmask(signal.SIG_BLOCK, standby.END_SIGNALS)
        child = os.fork()
        if child:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, standby.END_SIGNALS)
            os.close(writer)
            self._waiting[reader] = _Member(child, directory)
            return
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (*standby.END_SIGNALS, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            for fd in (reader, *inherited, *self._waiting):
                os.close(fd)
            standby.run(self._config, directory, pool, writer, self._home)
            status = 0
        except BaseException:
            log.exception("a process in standby failed")
        finally:
            os._exit(status)

    def _hear(self, fd: int) -> None:
        """A process in standby has written something, or has ended."""
        left = self._read(fd)
        if left is None:
            self._progress(f"{len(self._ready)} of {self._number} ready")
            return
        member, taken = left
        self._next = time.monotonic() + (_PAUSE_S if taken else _PAUSE_AFTER_FAILURE_S)
        self._progress(f"process {member.pid} {'has a sandbox' if taken else 'has ended'}: making another one")

    def _read(self, fd: int) -> tuple[_Member, bool] | None:
        """The process that has left, and whether with a sandbox; None for one that says that it is ready."""
        said = os.read(fd, 16)
        if said == standby.IS_READY:
            self._ready.add(fd)
            return None
        taken = standby.IS_TAKEN in said
        return self._let_go(fd, taken), taken

    def _let_go(self, fd: int, taken: bool) -> _Member:
        os.close(fd)
        self._ready.discard(fd)
        member = self._waiting.pop(fd)
        if not taken:
            _give_back(member.directory, _KILL_TIMEOUT_S)
        return member

    def _reap(self) -> None:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return

    def _end(self) -> None:
        """Have all in standby release what they hold, and do it for those that do not respond."""
        deadline = time.monotonic() + _EXIT_TIMEOUT_S
        self._read_all(0)  # those that have a sandbox are left alone
        for member in self._waiting.values():
            _signal(member.pid, signal.SIGTERM)
        while self._waiting and (left := deadline - time.monotonic()) > 0:
            self._read_all(left)
        for fd, member in list(self._waiting.items()):
            _signal(member.pid, signal.SIGKILL)
            self._let_go(fd, taken=False)

    def _read_all(self, timeout: float) -> None:
        for fd in select.select(list(self._waiting), [], [], timeout)[0]:
            self._read(fd)


def _give_back(directory: str, wait_s: float) -> None:
    """Release what a killed process in standby has left; nothing if it lives, in standby or with a sandbox."""
    if not os.path.isdir(directory):
        return
    try:
        problems = Ledger(directory, wait_s=wait_s).release()
    except Locked:
        return
    for problem in problems:
        log.warning("standby: cannot release %s", problem)


def _signal(child: int, number: int) -> None:
    try:
        os.kill(child, number)
    except ProcessLookupError:
        return
