"""Waiting for what a test asserts, with a deadline: never for something that usually comes before or after it.

Deadlines are those of an idle host. One on which several processes wait for each CPU is given as many times as long.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

from kata.errors import DeadlineExceeded

#: Default time between two looks.
_POLL_S = 0.02
#: Default deadline of a wait: far more than an idle host needs, for a busy one.
_WITHIN_S = 60.0
#: So that pytest's own timeout, after which nobody says what was waited for, comes later than most.
_MOST_TIMES = 4.0

Seen = TypeVar("Seen")


def eventually(
    look: Callable[[], Seen],
    what: str,
    wanted: Callable[[Seen], object] = bool,
    *,
    within_s: float = _WITHIN_S,
    poll_s: float = _POLL_S,
) -> Seen:
    """Look repeatedly until the result is as wanted; return it.

    Args:
        look: returns the result.
        what: names it in the error.
        wanted: whether the result is as wanted; by default, whether it is true.
        within_s: seconds until the wait fails.
        poll_s: seconds between two looks.

    Raises:
        DeadlineExceeded: it was not as wanted in time; the message has the last result.
    """
    begin = time.monotonic()
    while not wanted(seen := look()):
        _check(begin, what, within_s, seen)
        time.sleep(poll_s)
    return seen


@overload
async def eventually_async(
    look: Callable[[], Awaitable[Seen]],
    what: str,
    wanted: Callable[[Seen], object] = ...,
    *,
    within_s: float = ...,
    poll_s: float = ...,
) -> Seen: ...


@overload
async def eventually_async(
    look: Callable[[], Seen],
    what: str,
    wanted: Callable[[Seen], object] = ...,
    *,
    within_s: float = ...,
    poll_s: float = ...,
) -> Seen: ...


async def eventually_async(
    look: Callable[[], Any],
    what: str,
    wanted: Callable[[Any], object] = bool,
    *,
    within_s: float = _WITHIN_S,
    poll_s: float = _POLL_S,
) -> Any:
    """`eventually` for a test with an event loop, which keeps running; `look` may be a coroutine function."""
    begin = time.monotonic()
    while True:
        found = look()
        seen = await found if isinstance(found, Awaitable) else found
        if wanted(seen):
            return seen
        _check(begin, what, within_s, seen)
        await asyncio.sleep(poll_s)


def _check(begin: float, what: str, within_s: float, seen: object) -> None:
    if _is_over(begin, within_s):
        raise DeadlineExceeded(f"{what}: not within {within_s:.0f} s; seen last: {seen!r:.500}")


def _is_over(begin: float, within_s: float) -> bool:
    """Whether that time since `begin` (of `time.monotonic`) has passed, or what a host as busy as this one is given."""
    load, _, _ = os.getloadavg()
    return time.monotonic() - begin > within_s * min(max(1.0, load / (os.cpu_count() or 1)), _MOST_TIMES)


def at_most(within_s: float) -> float:
    """The seconds that the busiest host is given: for a wait that cannot look at the load meanwhile."""
    return within_s * _MOST_TIMES


def has_ended(pid: int) -> bool:
    """Return whether a process has ended and closed all its files; it may still be a zombie.

    A process without a command line or an environment is not enough: it may still have open files.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], 0)[0])
    finally:
        os.close(pidfd)
