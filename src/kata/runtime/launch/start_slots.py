"""Starts take turns: twice as many sandboxes as there are processors start at a time, and the others wait.

An emulated machine translates for as long as it starts, and does so slowly where it loses the processor's caches to
others all the time: forty starts at once took twice as long as the same forty, four at a time (docs/performance.md).
It is a courtesy and no condition: who has waited for long goes without.

A turn is the lock of a file, so the kernel takes it back from who dies. The order among those who wait is chance.

Imports nothing that takes long to load: the first try is made before there is an event loop.
"""

from __future__ import annotations

import os
import time

from kata.linux import lock
from kata.runtime.ledger.journal import STATE_ROOT

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio

_A_PROCESSOR = 2
#: Seconds to wait at most, and between two looks.
WAIT_MAX_S = 60.0
_POLL_S = 0.05


class StartSlot:
    """The right to start; until `end`, or the process's death.

    Args:
        fd: of a locked file; -1 for who goes without.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> StartSlot:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def keep(self) -> None:
        """Undo `end_in`."""
        if self._timer:
            self._timer.cancel()

    def end_in(self, seconds: float) -> None:
        """Give it to the next one if nothing else is said of it by then."""
        self.keep()
        if self._fd >= 0:
            import asyncio

            self._timer = asyncio.get_running_loop().call_later(seconds, self.end)

    def end(self) -> None:
        """Give it to the next one. Idempotent."""
        self.keep()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def try_acquire(root: str = STATE_ROOT) -> StartSlot | None:
    """A turn, if nobody has to be waited for."""
    try:
        os.makedirs(root, mode=0o700, exist_ok=True)
        for number in range(_A_PROCESSOR * len(os.sched_getaffinity(0))):
            fd = lock.acquire(os.path.join(root, f"start-slot-{number}"))
            if fd is not None:
                return StartSlot(fd)
    except OSError:
        return StartSlot(-1)  # a full or read-only file system: what needs it fails by itself
    return None


async def acquire(root: str = STATE_ROOT) -> StartSlot:
    """Wait for a turn, WAIT_MAX_S at most."""
    import asyncio

    deadline = time.monotonic() + WAIT_MAX_S
    while (slot := try_acquire(root)) is None:
        if time.monotonic() > deadline:
            return StartSlot(-1)
        await asyncio.sleep(_POLL_S)
    return slot
