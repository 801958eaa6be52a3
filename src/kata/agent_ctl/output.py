"""What this program writes: answers and streams on standard output, what it does on standard error."""

from __future__ import annotations

from typing import Protocol

from kata.cli import render
from kata.cli.streams import HostSink

PROGRAM = "kata-agent-ctl"
#: Kata's levels of logging, from the quietest to the most talkative.
LEVELS = ("critical", "error", "warn", "info", "debug", "trace")


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


class Log:
    """Messages on standard error.

    Args:
        level: one of LEVELS.
    """

    def __init__(self, level: str) -> None:
        self._level = LEVELS.index(level)

    def info(self, text: str) -> None:
        """A line about what is done."""
        if self._level >= LEVELS.index("info"):
            say(text)

    def debug(self, text: str) -> None:
        """Lines that help to find a mistake."""
        if self._level >= LEVELS.index("debug"):
            render.detail(text)


def say(message: str, *, hint: str | None = None) -> None:
    """Print a line on standard error, and a hint if there is one."""
    render.say(message, hint=hint, program=PROGRAM)


def warn(message: str) -> None:
    """Print a warning on standard error."""
    say(f"warning: {message}")
