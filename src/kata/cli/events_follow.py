"""`kata events --follow`: what happens in sandboxes, told over their management sockets.

A client connects first and reads what the sandbox has written down then, so that it misses nothing; what is in both is
shown once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path

from kata.cli.events import Told, directories_of, kept, parse_event, show
from kata.errors import KataError
from kata.management.client import stream

#: Seconds for a sandbox to begin to answer, and between two looks for new ones.
_ANSWER_TIMEOUT_S = 5.0
_LOOK_INTERVAL_S = 0.5
#: Bytes of an event; a longer one is left out.
_MAX_EVENT = 64 << 10
#: Events of a sandbox that are remembered, so that none is told twice: more than a state directory keeps.
_MAX_SEEN = 2048


async def told(sandbox: str, pieces: AsyncIterable[bytes]) -> AsyncIterator[Told]:
    """The events of a stream of server-sent events."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        rest = rest if len(rest) <= _MAX_EVENT else b""
        for line in lines:
            if line.startswith(b"data:") and (event := parse_event(sandbox, line.removeprefix(b"data:"))):
                yield event


async def follow(wanted: frozenset[str], since: float, *, as_json: bool) -> None:
    """Until every sandbox that was named has ended, or for ever."""
    watches = {directory.name: _Watch(directory, since, as_json) for directory in directories_of(wanted)}
    past = sorted((event for watch in watches.values() for event in watch.kept()), key=lambda event: event.time)
    show(past, as_json=as_json)
    tasks = {name: asyncio.create_task(watch.run()) for name, watch in watches.items()}
    try:
        while tasks or not wanted:
            await asyncio.sleep(_LOOK_INTERVAL_S)
            for directory in directories_of(wanted):
                if directory.name not in tasks:
                    tasks[directory.name] = asyncio.create_task(_Watch(directory, since, as_json).run())
            for name, task in list(tasks.items()):
                if task.done():
                    task.result()
                    del tasks[name]
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


class _Watch:
    """The events of one sandbox, each told once."""

    def __init__(self, directory: Path, since: float, as_json: bool) -> None:
        self._directory = directory
        self._since = since
        self._as_json = as_json
        self._seen: deque[str] = deque(maxlen=_MAX_SEEN)

    def kept(self) -> list[Told]:
        """Those that have been written down and not been told yet."""
        return [event for event in kept(self._directory) if self._is_new(event)]

    def _is_new(self, event: Told) -> bool:
        if event.json in self._seen:
            return False
        self._seen.append(event.json)
        return event.time >= self._since

    async def run(self) -> None:
        """Tell until the sandbox has ended."""
        while self._directory.is_dir():
            try:
                async with stream(self._directory, "/events", timeout=_ANSWER_TIMEOUT_S) as pieces:
                    show(self.kept(), as_json=self._as_json)
                    async for event in told(self._directory.name, pieces):
                        if self._is_new(event):
                            show([event], as_json=self._as_json)
            except KataError:
                show(self.kept(), as_json=self._as_json)  # it starts, has ended, or is another version's
            await asyncio.sleep(_LOOK_INTERVAL_S)
