"""Spans that wait for a collector: bounded, and what does not fit is counted."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

#: Bytes and spans that wait at most; beyond that the oldest are dropped.
MAX_BYTES, MAX_SPANS = 16 << 20, 65536
#: Bytes of one export.
MAX_BATCH = 1 << 20


class Batch(NamedTuple):
    """Serialized `ExportTraceServiceRequest`s, one after the other, which are one again; and their spans' number."""

    payload: bytes
    spans: int


class Buffer:
    """First in, first out.

    Attributes:
        dropped: spans that were dropped, since `take_dropped`.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, max_spans: int = MAX_SPANS) -> None:
        self.dropped = 0
        self._max_bytes = max_bytes
        self._max_spans = max_spans
        self._waiting: deque[Batch] = deque()
        self._bytes = 0
        self._spans = 0
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """How many spans wait."""
        return self._spans

    def put(self, batch: Batch) -> None:
        """Add spans, and drop the oldest if these are too many."""
        self._waiting.append(batch)
        self._bytes += len(batch.payload)
        self._spans += batch.spans
        while self._bytes > self._max_bytes or self._spans > self._max_spans:
            self.dropped += self._pop().spans
        self._changed.set()

    async def take(self) -> Batch:
        """Wait for spans; returns the oldest, as many as one export may have."""
        while not self._waiting:
            self._changed.clear()
            await self._changed.wait()
        taken = [self._pop()]
        size = len(taken[0].payload)
        while self._waiting and size + len(self._waiting[0].payload) <= MAX_BATCH:
            taken.append(self._pop())
            size += len(taken[-1].payload)
        return Batch(b"".join(batch.payload for batch in taken), sum(batch.spans for batch in taken))

    def take_dropped(self) -> int:
        """How many spans were dropped since the last call."""
        dropped, self.dropped = self.dropped, 0
        return dropped

    def _pop(self) -> Batch:
        batch = self._waiting.popleft()
        self._bytes -= len(batch.payload)
        self._spans -= batch.spans
        return batch
