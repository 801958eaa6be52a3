"""Flushing: what containers have written goes to the host, for as long as that gets on.

A disk that hangs, or a server of files that has ended, must hold nobody back. One that is slow may take its time.

Reference: proc(5), "/proc/meminfo".
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

#: Seconds in which something has to be written, and seconds for all: the host waits a minute for an answer.
_STEP_S = 5.0
_LIMIT_S = 40.0
_MEMINFO = "/proc/meminfo"
_WAITING = ("Dirty:", "Writeback:")


async def flush(work: Callable[[], None]) -> bool:
    """Do what flushes, in a thread, and wait for it until nothing is written any more, or for _LIMIT_S.

    Args:
        work: blocks until all is written; raises nothing.

    Returns:
        Whether it has ended. If not, the thread is left to itself.
    """
    flushing = asyncio.get_running_loop().run_in_executor(None, work)
    left, deadline = waiting(), time.monotonic() + _LIMIT_S
    while not (await asyncio.wait({flushing}, timeout=_STEP_S))[0]:
        before, left = left, waiting()
        if left >= before or time.monotonic() > deadline:
            log.warning("%d KiB still wait to be written, %d KiB %g s ago", left, before, _STEP_S)
            return False
    return True


def waiting() -> int:
    """KiB in this guest that wait to be written, to whatever file system."""
    with open(_MEMINFO, encoding="ascii") as file:
        found = [line.split() for line in file if line.startswith(_WAITING)]
    return sum(int(fields[1]) for fields in found)
