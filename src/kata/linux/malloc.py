"""glibc's allocator (mallopt(3))."""

from __future__ import annotations

from kata.linux.libc import LIBC

_M_ARENA_MAX = -8


def use_one_arena() -> None:
    """Have all threads allocate from one arena, which costs nothing where they run one at a time, as Python's do.

    With one for each of them, what one has freed is not used by the others. Called before there are threads.
    """
    LIBC.mallopt(_M_ARENA_MAX, 1)
