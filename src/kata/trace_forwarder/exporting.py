"""Spans from the buffer to a collector, which may be away for any time."""

from __future__ import annotations

import asyncio
import logging
import time

from kata.logs.visible import visible
from kata.trace_forwarder.buffer import Batch, Buffer
from kata.trace_forwarder.otlp import Exporter, ExportError

log = logging.getLogger(__name__)

_MIN_RETRY_S, _MAX_RETRY_S = 0.5, 30.0
#: Seconds between two messages about what is lost.
_REPORT_S = 10.0


class Exporting:
    """Exports what comes into the buffer.

    Args:
        buffer: where spans wait.
        exporter: the way to the collector.
        where: names the collector.

    Attributes:
        exported, lost: spans that the collector has taken; that it has not, for any reason.
    """

    def __init__(self, buffer: Buffer, exporter: Exporter, where: str) -> None:
        self.exported = 0
        self.lost = 0
        self._buffer = buffer
        self._exporter = exporter
        self._where = where
        self._batch: Batch | None = None
        self._reported = -_REPORT_S
        self._untold = 0
        self._why = ""
        #: Set when the fate of a batch is known.
        self._settled = asyncio.Event()
        self._away_since = 0.0

    async def run(self) -> None:
        """Export, until cancelled."""
        delay = _MIN_RETRY_S
        while True:
            if self._batch is None:
                self._batch = await self._buffer.take()
            try:
                rejected = await self._exporter.export(self._batch.payload)
            except ExportError as error:
                if error.again:
                    self._is_away(str(error))
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, _MAX_RETRY_S)
                    continue
                self._lose(self._batch.spans, f"{self._where} does not take them: {visible(str(error))}")
            else:
                self._is_back()
                self.exported += self._batch.spans - rejected
                if rejected:
                    self._lose(rejected, f"{self._where} has rejected them")
            self._batch, delay = None, _MIN_RETRY_S
            self._settled.set()
            self.report_dropped()

    async def flush(self, timeout_s: float) -> int:
        """Wait until all is exported, for `timeout_s` seconds at most; returns how many spans are left."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._left:
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            pass
        return self._left

    @property
    def _left(self) -> int:
        return len(self._buffer) + (self._batch.spans if self._batch else 0)

    def report_dropped(self) -> None:
        """Say what was dropped because the buffer is full, every ten seconds at most."""
        self._lose(self._buffer.take_dropped(), f"{self._where} is too slow, or away: the oldest are dropped")

    def _lose(self, spans: int, why: str) -> None:
        if spans:
            self.lost += spans
            self._untold += spans
            self._why = why
        if self._untold and time.monotonic() - self._reported >= _REPORT_S:
            log.warning("%d spans are lost, the last because %s", self._untold, self._why)
            self._reported, self._untold = time.monotonic(), 0

    def _is_away(self, why: str) -> None:
        if not self._away_since:
            self._away_since = time.monotonic()
            log.warning("%s is away, spans wait: %s", self._where, visible(why))
        self.report_dropped()

    def _is_back(self) -> None:
        if self._away_since:
            away = time.monotonic() - self._away_since
            log.info(
                "%s is back after %.0f s; %d spans wait, %d are lost", self._where, away, len(self._buffer), self.lost
            )
            self._away_since = 0.0
