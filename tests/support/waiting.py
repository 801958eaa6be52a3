"""Waiting for what happens by itself, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from kata.errors import DeadlineExceeded

#: Seconds between two looks, unless told otherwise.
_POLL_S = 0.02

Seen = TypeVar("Seen")


def eventually(
    look: Callable[[], Seen],
    what: str,
    wanted: Callable[[Seen], object] = bool,
    *,
    within_s: float = 20.0,
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
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"{what}: not within {within_s:.0f} s; seen last: {seen!r:.500}")
        time.sleep(poll_s)
    return seen
