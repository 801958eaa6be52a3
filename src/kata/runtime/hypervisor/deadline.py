"""Deadlines for a VM that do not count its run delay, the time that its threads were ready and waited for a CPU.

Sixty sandboxes that start at once on two CPUs take longer than any of them may, and none of them hangs: their threads
wait for a CPU, which the kernel counts. A VM that hangs has no run delay.

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

#: Seconds by which a deadline is extended at most: the run delay of a guest that spins on a busy host never ends.
MAX_RUN_DELAY_S = 100.0


def run_delay(pid: int) -> float:
    """The run delay of a process's threads together, in seconds; 0 if there is no such process, or no count."""
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
            continue  # the thread has ended, or the kernel does not count
    return total / 1e9


async def before_deadline(what: str, call: Coroutine[Any, Any, _T], timeout: float, pid: int) -> _T:
    """Await a call, and cancel it if it takes too long.

    Args:
        what: who is to answer, for the error.
        call: the call.
        timeout: seconds, to which the run delay of process `pid` is added, MAX_RUN_DELAY_S at most.
        pid: the VMM's process.

    Returns:
        The call's result.

    Raises:
        DeadlineExceeded: it took longer.
    """
    begin, before = time.monotonic(), run_delay(pid)
    task = asyncio.ensure_future(call)
    try:
        while not task.done():
            extension = min(max(0.0, run_delay(pid) - before), MAX_RUN_DELAY_S)
            left = begin + timeout + extension - time.monotonic()
            if left <= 0:
                waited = f" and a run delay of {extension:.0f} s" if extension >= 1 else ""
                raise DeadlineExceeded(f"{what} did not answer within {timeout:.0f} s{waited}")
            await asyncio.wait({task}, timeout=left)
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
