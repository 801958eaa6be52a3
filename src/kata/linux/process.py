"""What a process decides about itself and its children: prctl(2), personality(2)."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from kata.linux.libc import LIBC, check

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_ADDR_NO_RANDOMIZE = 0x0040000
_ASK = 0xFFFFFFFF

LIBC.personality.argtypes = [ctypes.c_ulong]


def set_child_subreaper() -> None:
    """Orphans below this process become its children, so that it can wait for them (prctl(2))."""
    check(LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl PR_SET_CHILD_SUBREAPER")


def set_parent_death_signal(number: int) -> None:
    """Get this signal when the thread that made this process ends; 0 for none (prctl(2))."""
    check(LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl PR_SET_PDEATHSIG")


@contextmanager
def fixed_addresses() -> Iterator[None]:
    """Programs that this thread executes meanwhile find memory at the same addresses each time (personality(2)).

    They pass that on to what they execute.
    """
    before = check(LIBC.personality(_ASK), "personality")
    check(LIBC.personality(before | _ADDR_NO_RANDOMIZE), "personality")
    try:
        yield
    finally:
        check(LIBC.personality(before), "personality")
