"""Waiting for what a test asserts, with a deadline: never for something that usually comes before or after it."""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

from kata.errors import DeadlineExceeded

#: Seconds between two looks, unless told otherwise.
_POLL_S = 0.02
#: Seconds until a wait is given up, unless told otherwise: far more than an idle host takes, for a busy one.
_WITHIN_S = 60.0

Seen = TypeVar("Seen")


def eventually(
    look: Callable[[], Seen],
    what: str,
    wanted: Callable[[Seen], object] = bool,
    *,
    within_s: float = _WITHIN_S,
    poll_s: float = _POLL_S,
) -> Seen:
    """Look again and again, until what is seen is as wanted; returns that.

    Args:
        what: should be there, for the complaint.
        wanted: whether that is what is waited for; by default, that there is something.

    Raises:
        DeadlineExceeded: it was not within `within_s` seconds; with what was seen last.
    """
    deadline = time.monotonic() + within_s
    while not wanted(seen := look()):
        _check(deadline, what, within_s, seen)
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
    """`eventually` for a test with an event loop, which runs meanwhile; `look` may be a coroutine function."""
    deadline = time.monotonic() + within_s
    while True:
        found = look()
        seen = await found if isinstance(found, Awaitable) else found
        if wanted(seen):
            return seen
        _check(deadline, what, within_s, seen)
        await asyncio.sleep(poll_s)


def _check(deadline: float, what: str, within_s: float, seen: object) -> None:
    if time.monotonic() > deadline:
        raise DeadlineExceeded(f"{what}: not within {within_s:.0f} s; seen last: {seen!r:.500}")


def has_ended(pid: int) -> bool:
    """Whether a process has ended and let go of all that it had open; whoever made it need not have waited for it.

    Not the same as a process without a command line or an environment: that one may still have its files open.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], 0)[0])
    finally:
        os.close(pidfd)
