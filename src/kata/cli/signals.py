"""This process's signals: taken over once and for good, told to whoever is in charge at the time.

Not by asyncio's own means, because those end with the event loop, and a signal between its end and the process's would
then spoil the exit code.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

#: Those that end a process unless it says otherwise, and come from people.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
FORWARDED = (*ENDING, signal.SIGUSR1, signal.SIGUSR2)


class Interrupted(Exception):
    """A signal ended what was being done."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.strsignal(number))
        self.number = number


class Signals:
    """FORWARDED and SIGWINCH of this process. Until somebody is in charge, those that end a process raise Interrupted.

    What is ignored stays ignored: that is how nohup and a shell's background jobs ask for it.
    """

    def __init__(self) -> None:
        self._tell: Callable[[int], object] = interrupt
        for number in (*FORWARDED, signal.SIGWINCH):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._arrived)

    def tell(self, receiver: Callable[[int], object]) -> None:
        """From now on `receiver` is called, in the main thread and between any two instructions of it."""
        self._tell = receiver

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        self._tell(number)


def interrupt(number: int) -> None:
    """Raise Interrupted for a signal that ends a process."""
    if number in ENDING:
        raise Interrupted(number)


def ignore(number: int) -> None:
    """Everything is ending already, and within bounded time."""
