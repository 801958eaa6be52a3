"""Flushing: what containers have written goes to the host, for as long as that gets on.

A disk that hangs, or a server of files that has ended, must hold nobody back for ever. One that is slow may take as
long as it needs.

Reference: proc(5), "/proc/meminfo".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

#: Seconds in which something has to be written.
_STEP_S = 5.0
_MEMINFO = "/proc/meminfo"
_WAITING = ("Dirty:", "Writeback:")


async def flush(work: Callable[[], None]) -> bool:
    """Do what flushes, in a thread, and wait for it until nothing is written any more.

    Args:
        work: blocks until all is written; raises nothing.

    Returns:
        Whether it has ended. If not, the thread is left to itself.
    """
    flushing = asyncio.get_running_loop().run_in_executor(None, work)
    left = waiting()
    while not (await asyncio.wait({flushing}, timeout=_STEP_S))[0]:
        before, left = left, waiting()
        if left >= before:
            log.warning("of %d KiB that wait to be written nothing was written in %g s", left, _STEP_S)
            return False
    return True


def waiting() -> int:
    """KiB in this guest that wait to be written, to whatever file system."""
    with open(_MEMINFO, encoding="ascii") as file:
        found = [line.split() for line in file if line.startswith(_WAITING)]
    return sum(int(fields[1]) for fields in found)
