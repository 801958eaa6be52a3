"""Deadlines for what a machine does, which leave out the time that the host did not give it.

Sixty sandboxes that start at once on two processors take longer than any of them alone may, and none of them is broken:
their threads wait for a processor, which the kernel counts. A machine that hangs waits for nothing.

Reference: the kernel's Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from kata.errors import DeadlineExceeded

_T = TypeVar("_T")

#: Seconds that a deadline is put off by at most: a guest that spins on a busy host waits for ever.
RUN_DELAY_MAX_S = 100.0


def run_delay(pid: int) -> float:
    """Seconds that the threads of a process have waited for a processor; 0 if there is no such process or count."""
    total = 0
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return 0.0
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[1])
        except (OSError, IndexError):
            continue  # it has ended, or the kernel does not count
    return total / 1e9


async def before_deadline(what: str, call: Coroutine[Any, Any, _T], timeout: float, pid: int) -> _T:
    """Await a call, and cancel it if it takes too long.

    Args:
        what: who is to answer, for the error.
        timeout: seconds, less those that process `pid` waits for a processor, of which RUN_DELAY_MAX_S count.

    Raises:
        DeadlineExceeded: it took longer.
    """
    begin, before = time.monotonic(), run_delay(pid)
    task = asyncio.ensure_future(call)
    try:
        while not task.done():
            put_off = min(max(0.0, run_delay(pid) - before), RUN_DELAY_MAX_S)
            left = begin + timeout + put_off - time.monotonic()
            if left <= 0:
                waited = f", and {put_off:.0f} s of waiting for a processor" if put_off >= 1 else ""
                raise DeadlineExceeded(f"{what} did not answer within {timeout:.0f} s{waited}")
            await asyncio.wait({task}, timeout=left)
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
