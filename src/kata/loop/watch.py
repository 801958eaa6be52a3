"""How long an event loop is kept from running, and where: a debug switch.

It is on where the log shows debug messages. A thread asks the loop for a sign of life at intervals; if that takes too
long, a warning says how long and what the loop's thread was doing. Time in which that thread was ready and waited for a
CPU is not counted, nor time in which the whole machine stood still.

Reference: the kernel's Documentation/scheduler/sched-stats.rst, /proc/PID/task/TID/schedstat.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from types import TracebackType

log = logging.getLogger(__name__)

#: What the warning begins with, for tests.
BLOCKED = "the event loop was blocked for"

_LIMIT_S = 1.0
_INTERVAL_S = 0.2
#: Time is counted in the thread's own wake-ups, which a machine that stands still has none of.
_TICK_S = 0.05
_FRAMES = 4


class LoopWatch:
    """Watches the running loop, as a context manager.

    Args:
        limit_s: seconds that are worth a warning.
    """

    def __init__(self, limit_s: float = _LIMIT_S) -> None:
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._watched = threading.current_thread()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loop watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()  # which takes a tick

    def _run(self) -> None:
        while not self._stopped.wait(_INTERVAL_S):
            try:
                self._measure()
            except RuntimeError:
                return  # the loop is closed

    def _measure(self) -> None:
        alive = threading.Event()
        waited = self._run_delay()
        self._loop.call_soon_threadsafe(alive.set)
        ticks, where = 0, ""
        while not alive.wait(_TICK_S):
            if self._stopped.is_set():
                return
            ticks += 1
            where = where or (self._where() if ticks * _TICK_S >= self._limit_s else "")
        blocked = ticks * _TICK_S - (self._run_delay() - waited)
        if where and blocked >= self._limit_s:
            log.warning("%s %.1f s: %s", BLOCKED, blocked, where)

    def _where(self) -> str:
        frame = sys._current_frames().get(self._watched.ident or 0)
        stack = traceback.extract_stack(frame)[-_FRAMES:]
        return " > ".join(f"{entry.filename}:{entry.lineno} {entry.name}" for entry in stack)

    def _run_delay(self) -> float:
        """Seconds that the loop's thread was ready and waited for a CPU; 0 where the kernel does not count."""
        try:
            with open(f"/proc/self/task/{self._watched.native_id}/schedstat", encoding="ascii") as file:
                return int(file.read().split()[1]) / 1e9
        except (OSError, IndexError):
            return 0.0
