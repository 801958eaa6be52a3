"""This process's signals: handled from the start to the end of the process, by one receiver at a time.

asyncio's own handlers end with the event loop: a signal between its end and the process's would change the exit code.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

#: Signals from the user that end a process by default.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
FORWARDED = (*ENDING, signal.SIGUSR1, signal.SIGUSR2)


class Interrupted(Exception):
    """A signal arrived before a receiver was set.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.strsignal(number))
        self.number = number


class Signals:
    """FORWARDED and SIGWINCH of this process. Until a receiver is set, those of ENDING raise Interrupted.

    A signal that is ignored stays ignored, as nohup(1) and a shell's background jobs expect.
    """

    def __init__(self) -> None:
        self._receiver: Callable[[int], object] = interrupt
        self._wakeup: _Wakeup | None = None
        for number in (*FORWARDED, signal.SIGWINCH):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._arrived)

    def deliver_to(self, receiver: Callable[[int], object]) -> None:
        """Set the receiver of signals: called in the main thread, between two of its bytecode instructions."""
        self._receiver = receiver
        if self._wakeup is not None:
            self._wakeup.close()
            self._wakeup = None

    def deliver_in(self, loop: asyncio.AbstractEventLoop, receiver: Callable[[int], object]) -> None:
        """Set the receiver of signals: called by an event loop of the main thread, which a signal wakes."""
        self.deliver_to(lambda number: loop.call_soon_threadsafe(receiver, number))
        self._wakeup = _Wakeup(loop)

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        self._receiver(number)


class _Wakeup:
    """Has signals wake an event loop.

    One that comes in the moment before the loop sleeps, or that the kernel gives to another thread, does not: Python
    only notes it, and calls its handler when the loop has woken for another reason.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._noted, self._note = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        loop.add_reader(self._noted, os.read, self._noted, 4096)
        self._before = signal.set_wakeup_fd(self._note, warn_on_full_buffer=False)

    def close(self) -> None:
        """Have them wake what they woke before."""
        signal.set_wakeup_fd(self._before)
        self._loop.remove_reader(self._noted)
        os.close(self._noted)
        os.close(self._note)


def interrupt(number: int) -> None:
    """Raise Interrupted for a signal of ENDING; a receiver.

    Raises:
        Interrupted: the signal is one of ENDING.
    """
    if number in ENDING:
        raise Interrupted(number)


def ignore(number: int) -> None:
    """Ignore a signal; a receiver for when everything is ending already, within bounded time."""
