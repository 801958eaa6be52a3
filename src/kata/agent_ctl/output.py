"""Where answers and the output of processes go."""

from __future__ import annotations

from typing import Protocol

from kata.cli.streams import HostSink


class Output(Protocol):
    """Where answers and the output of processes go."""

    async def write(self, data: bytes, fd: int = 1) -> None:
        """Write all of it to standard output, or error. Raises OSError, e.g. if the reader has gone."""

    def close(self) -> None:
        """Nothing more is written. Idempotent."""


class HostOutput:
    """This process's own standard output and error. Made inside a running event loop; has to be closed."""

    def __init__(self) -> None:
        self._error: OSError | None = None
        self._sinks: dict[int, HostSink] = {}

    async def write(self, data: bytes, fd: int = 1) -> None:
        """Implement Output, however slow the reader."""
        if fd not in self._sinks:
            self._sinks[fd] = HostSink(fd, self._failed)
        await self._sinks[fd].write(data)
        if self._error is not None:
            raise self._error

    def _failed(self, error: OSError) -> None:
        self._error = error

    def close(self) -> None:
        """Close. Idempotent."""
        for sink in self._sinks.values():
            sink.close()
