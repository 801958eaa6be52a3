"""Attributes of a process and its children: prctl(2), personality(2)."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from kata.linux.libc import LIBC, check

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_ADDR_NO_RANDOMIZE = 0x0040000
_QUERY = 0xFFFFFFFF

LIBC.personality.argtypes = [ctypes.c_ulong]


def set_child_subreaper() -> None:
    """Make orphans below this process its children, so that it can wait for them (prctl(2)). Raises OSError."""
    check(LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl PR_SET_CHILD_SUBREAPER")


def set_parent_death_signal(number: int) -> None:
    """Get a signal when the thread that made this process ends; 0 for none (prctl(2)). Raises OSError."""
    check(LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl PR_SET_PDEATHSIG")


@contextmanager
def fixed_addresses() -> Iterator[None]:
    """Disable address space randomization for programs that this thread executes within the block (personality(2)).

    They pass that on to programs that they execute.

    Raises:
        OSError: the kernel refuses.
    """
    before = check(LIBC.personality(_QUERY), "personality")
    check(LIBC.personality(before | _ADDR_NO_RANDOMIZE), "personality")
    try:
        yield
    finally:
        check(LIBC.personality(before), "personality")
