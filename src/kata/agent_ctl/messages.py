"""Messages on standard error: what is done, and what is wrong."""

from __future__ import annotations

from kata.cli import render

PROGRAM = "kata-agent-ctl"
#: Kata's levels of logging, from the quietest to the most talkative.
LEVELS = ("critical", "error", "warn", "info", "debug", "trace")


class Log:
    """Messages on standard error.

    Args:
        level: one of LEVELS.
    """

    def __init__(self, level: str) -> None:
        self._level = LEVELS.index(level)

    def shows(self, level: str) -> bool:
        """Whether messages of a level are shown."""
        return self._level >= LEVELS.index(level)

    def info(self, text: str) -> None:
        """A line about what is done."""
        if self.shows("info"):
            say(text)

    def debug(self, text: str) -> None:
        """Lines that help to find a mistake."""
        if self.shows("debug"):
            render.detail(text)


def say(message: str, *, hint: str | None = None) -> None:
    """Print a line on standard error, and a hint if there is one."""
    render.say(message, hint=hint, program=PROGRAM)


def warn(message: str) -> None:
    """Print a warning on standard error."""
    say(f"warning: {message}")
