"""Frames to the trace forwarder's socket: in order, and never in anybody's way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque

from kata.protocols.traces import PORT, frame

log = logging.getLogger(__name__)

#: Frames that wait for a forwarder that is away, and their bytes; beyond that the oldest are dropped.
_MAX_FRAMES, _MAX_BYTES = 1024, 4 << 20
_MIN_RETRY_S, _MAX_RETRY_S = 0.1, 5.0
#: Seconds for the forwarder to read what it was sent.
_WRITE_TIMEOUT_S = 5.0


def forwarder_socket(path: str) -> str:
    """Where the forwarder listens that was given `path`: as the VMM of hybrid vsock names a port of the host."""
    return f"{path}_{PORT}"


class Sender:
    """Sends frames. Made inside a running event loop; has to be closed.

    Args:
        path: as `--socket-path` of kata-trace-forwarder.
    """

    def __init__(self, path: str) -> None:
        self._path = forwarder_socket(path)
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._dropped = 0
        self._is_away = False
        self._more = asyncio.Event()
        self._sent = asyncio.Event()
        self._sent.set()
        self._writer: asyncio.StreamWriter | None = None
        self._task = asyncio.create_task(self._run(), name="spans to the trace forwarder")

    def send(self, payload: bytes) -> None:
        """Queue a payload, and return at once."""
        self._waiting.append(frame(payload))
        self._size += len(self._waiting[-1])
        while len(self._waiting) > _MAX_FRAMES or self._size > _MAX_BYTES:
            self._size -= len(self._waiting.popleft())
            self._dropped += 1
        self._sent.clear()
        self._more.set()

    async def close(self, grace_s: float) -> None:
        """Wait up to `grace_s` seconds until all is sent, then disconnect. Idempotent."""
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(grace_s):
                await self._sent.wait()
                if self._writer is not None:
                    self._writer.close()
                    await self._writer.wait_closed()
        if lost := len(self._waiting) + self._dropped:
            log.warning("tracing: %d messages with spans were not sent to %s", lost, self._path)
        self._task.cancel()
        await asyncio.wait({self._task})
        self._disconnect()

    async def _run(self) -> None:
        delay = _MIN_RETRY_S
        while True:
            self._more.clear()
            try:
                while self._waiting:
                    await self._send_first()
                    delay = _MIN_RETRY_S
            except (OSError, TimeoutError) as error:
                self._disconnect()
                if not self._is_away:
                    why = (error.strerror or str(error) or "it does not read").lower()
                    log.warning("tracing: spans wait for kata-trace-forwarder at %s: %s", self._path, why)
                self._is_away = True
                await asyncio.sleep(delay)
                delay = min(delay * 2, _MAX_RETRY_S)
                continue
            self._sent.set()
            await self._more.wait()

    async def _send_first(self) -> None:
        """Send the oldest frame: whole, or again on the next connection, since half of one is dropped there.

        Raises:
            OSError, TimeoutError: the forwarder is away, or does not read.
        """
        sending = self._waiting[0]
        async with asyncio.timeout(_WRITE_TIMEOUT_S):
            if self._writer is None:
                _, self._writer = await asyncio.open_unix_connection(self._path)
                if self._is_away:
                    log.info("tracing: kata-trace-forwarder is back; %d messages were dropped", self._dropped)
                self._is_away, self._dropped = False, 0
            self._writer.write(sending)
            await self._writer.drain()
        # Meanwhile it may have been dropped as the oldest.
        if self._waiting and self._waiting[0] is sending:
            self._size -= len(self._waiting.popleft())

    def _disconnect(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None
