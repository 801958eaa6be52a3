"""Looks at all sandboxes again and again: who is there, and what each uses. One that hangs holds up no other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kata.cli import sandboxes
from kata.cli.usage import Sample, View, parse_sample
from kata.errors import KataError, NotFound
from kata.management.client import request

#: Seconds for the answer of a sandbox.
_TIMEOUT_S = 2.0
#: Seconds for which what is told of a sandbox stands, unless its containers change.
_MAX_AGE_S = 10.0
#: Sandboxes that are asked at once.
_AT_ONCE = 32


class Observer:
    """Remembers the last sample of each sandbox, which the next one makes a rate of. Not made in an event loop.

    Args:
        wanted: names of sandboxes; all if there is none.

    Raises:
        NotFound: one that is named does not exist.
        KataError: a name is invalid, or ambiguous.
    """

    def __init__(self, wanted: Iterable[str] = ()) -> None:
        from kata.cli.management import directory_of

        self._wanted: set[str] = set()
        for name in wanted:
            directory = directory_of(name)
            if not directory.is_dir():
                raise NotFound(f"sandbox {name} does not exist", hint="kata list shows all sandboxes")
            self._wanted.add(directory.name)
        self._views: dict[str, tuple[View, float]] = {}
        self._places = asyncio.Semaphore(_AT_ONCE)

    @property
    def watches_all(self) -> bool:
        """Whether no sandbox was named."""
        return not self._wanted

    async def look(self) -> list[View]:
        """All sandboxes that are there now, by name."""
        there = [one for one in sandboxes.directories() if not self._wanted or one.name in self._wanted]
        found = await asyncio.gather(*(self._look(directory) for directory in there))
        self._views = {directory.name: one for directory, one in zip(there, found, strict=True)}
        return [view for view, _ in found]

    async def _look(self, directory: Path) -> tuple[View, float]:
        async with self._places:
            last, asked_at = self._views.get(directory.name, (None, 0.0))
            sample = await self._sample(directory)
            if last is None or sample is None or time.monotonic() > asked_at + _MAX_AGE_S or _changed(last, sample):
                told: Mapping[str, Any] = await sandboxes.look(directory, _TIMEOUT_S)
                asked_at = time.monotonic()
            else:
                told = last.told
            return View(told, last.after if last else None, sample), asked_at

    async def _sample(self, directory: Path) -> Sample | None:
        try:
            return parse_sample(await request(directory, "GET", "/stats", timeout=_TIMEOUT_S))
        except (KataError, ValueError):
            return None


def _changed(last: View, sample: Sample) -> bool:
    """Whether containers have come or gone."""
    return last.after is None or last.after.containers.keys() != sample.containers.keys()
