"""Start slots: two sandboxes for each CPU may start at a time, and the others wait for a slot.

An emulated guest is translated for as long as it starts, which is slow where others keep taking the CPU's caches:
forty starts at once took twice as long as the same forty, four at a time (docs/performance.md). A slot is a courtesy,
not a condition: who has waited for long starts without one.

A slot is the lock of a file, so the kernel frees it when its holder dies. Waiters get slots in no particular order.

Imports nothing slow: the first try is made before there is an event loop.
"""

from __future__ import annotations

import os
import time

from kata.linux import lock
from kata.runtime.ledger.journal import STATE_ROOT, make_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio

_SLOTS_PER_CPU = 2
#: Seconds to wait at most, and between two tries.
MAX_WAIT_S = 60.0
_POLL_S = 0.05
#: Seconds that a started sandbox keeps its slot for its next step: its first container, and that one's start.
LINGER_S = 0.7


class StartSlot:
    """The right to start, until `release` or the process's death.

    Args:
        fd: descriptor of a locked file; -1 if the sandbox starts without a slot.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> StartSlot:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def keep(self) -> None:
        """Undo `release_in`."""
        if self._timer:
            self._timer.cancel()

    def release_in(self, seconds: float) -> None:
        """Release it after a time, unless `keep` or `release_in` is called before that."""
        self.keep()
        if self._fd >= 0:
            import asyncio

            self._timer = asyncio.get_running_loop().call_later(seconds, self.release)

    def release(self) -> None:
        """Leave it to others. Idempotent."""
        self.keep()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def try_acquire(root: str = STATE_ROOT) -> StartSlot | None:
    """A slot, or None if all are taken.

    Where none can be made (the file system is full or read-only), the sandbox starts without one: what it needs for
    itself fails with a better message.
    """
    try:
        make_directory(root)
        for number in range(_SLOTS_PER_CPU * len(os.sched_getaffinity(0))):
            fd = lock.acquire(os.path.join(root, f"start-slot-{number}"))
            if fd is not None:
                return StartSlot(fd)
    except OSError:
        return StartSlot(-1)
    return None


async def acquire(root: str = STATE_ROOT) -> StartSlot:
    """Wait for a slot, MAX_WAIT_S at most; then start without."""
    import asyncio

    deadline = time.monotonic() + MAX_WAIT_S
    while (slot := try_acquire(root)) is None:
        if time.monotonic() > deadline:
            return StartSlot(-1)
        await asyncio.sleep(_POLL_S)
    return slot
