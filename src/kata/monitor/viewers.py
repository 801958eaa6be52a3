"""Those who look at the page: each is told of every change, as server-sent events, as long as it keeps up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

#: Viewers at a time, and changes that wait for one; one that is further behind has to come again.
MAX_VIEWERS = 200
_MAX_QUEUE = 64
#: Seconds after which one that has been told nothing gets a comment, so that either side finds the other gone.
_KEEP_ALIVE_S = 15.0


class Viewers:
    """All of them."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[bytes | None]] = set()

    def __len__(self) -> int:
        return len(self._queues)

    def tell(self, what: str, content: dict[str, Any]) -> None:
        """Tell all of a change."""
        if not self._queues:
            return
        message = encoded(what, content)
        for queue in list(self._queues):
            if queue.qsize() >= _MAX_QUEUE:
                self._queues.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(message)

    async def watch(self, first: bytes) -> AsyncIterator[bytes]:
        """What one viewer is sent.

        Args:
            first: sent before everything else.
        """
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._queues.add(queue)
        try:
            yield first
            while True:
                try:
                    async with asyncio.timeout(_KEEP_ALIVE_S):
                        message = await queue.get()
                except TimeoutError:
                    message = b":\n\n"
                if message is None:
                    return
                yield message
        finally:
            self._queues.discard(queue)


def encoded(what: str, content: dict[str, Any]) -> bytes:
    """An event of that type, with its content in JSON (HTML standard, "Server-sent events")."""
    # JSON in ASCII has no line end, and nothing that a browser takes for one.
    return f"event: {what}\ndata: {json.dumps(content, separators=(',', ':'))}\n\n".encode()
