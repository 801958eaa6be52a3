"""`/debug`: Kata's paths, as far as Python has what they tell."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import traceback
import tracemalloc
from typing import Any

from kata.metrics.procfs import own_process

_STARTED = time.time()
_MAX_LINES = 50

#: What Go's profiler tells and Python's interpreter does not, with the reason.
ABSENT = {
    "profile": "the interpreter does not sample itself; py-spy(1) does, from outside",
    "trace": "the interpreter does not trace its scheduler",
    "symbol": "there are no program counters to look up: stacks name their functions",
    "allocs": "allocations are not counted; `heap` shows those that are alive",
    "block": "blocking is not counted",
    "mutex": "blocking is not counted",
    "threadcreate": "creations of threads are not counted; `goroutine` shows those that are alive",
}
NO_TRACEMALLOC = "memory is not traced; start kata-monitor with PYTHONTRACEMALLOC=1 for that, which slows it down"
IN_SHIMS = "a shim has no profiler; `kata logs --shim` and `kata timings` tell what it does"


def variables(sandboxes: int, viewers: int) -> dict[str, Any]:
    """The state of this process."""
    return {
        "cmdline": sys.argv,
        "python": sys.version.split()[0],
        "uptime_seconds": round(time.time() - _STARTED, 1),
        "sandboxes": sandboxes,
        "viewers": viewers,
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "garbage_collections": [generation["collections"] for generation in gc.get_stats()],
        **{f"process_{name}": value for name, value in own_process().items()},
    }


def stacks() -> str:
    """The stacks of all threads, and of all tasks of the event loop."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        parts.append(f"thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}")
    for task in asyncio.all_tasks():
        stack = "".join("".join(traceback.format_stack(frame, 1)) for frame in task.get_stack())
        parts.append(f"task {task.get_name()}\n{stack}")
    return "\n".join(parts)


def heap() -> str | None:
    """Where the memory was allocated that is in use, the most first; None if that is not traced."""
    if not tracemalloc.is_tracing():
        return None
    snapshot = tracemalloc.take_snapshot()
    return "\n".join(str(line) for line in snapshot.statistics("lineno")[:_MAX_LINES]) + "\n"
