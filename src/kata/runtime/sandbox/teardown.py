"""Giving back what a sandbox holds: newest first, every step whatever becomes of the others, the ledger last."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

from kata.runtime.ledger.journal import Ledger

log = logging.getLogger(__name__)


class Teardown:
    """What acquires something pushes the step that releases it.

    Args:
        what: whose teardown, for the log.

    Attributes:
        steps: run from the last to the first.
    """

    def __init__(self, what: str, ledger: Ledger) -> None:
        self.steps = AsyncExitStack()
        self._what = what
        self._ledger = ledger
        self._running: asyncio.Task[list[str]] | None = None

    async def run(self) -> list[str]:
        """Run it once. Later callers wait for the first, and it ends also when a caller is cancelled.

        Returns:
            What could not be released; it has been logged.
        """
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name=f"teardown of {self._what}")
        return await asyncio.shield(self._running)

    async def _run(self) -> list[str]:
        try:
            await self.steps.aclose()
        except Exception:
            log.exception("%s: a step of the teardown failed", self._what)
        finally:
            problems = self._ledger.release()
            for problem in problems:
                log.warning("%s: could not release %s", self._what, problem)
        return problems


async def cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it has ended."""
    task.cancel()
    await asyncio.wait({task})
