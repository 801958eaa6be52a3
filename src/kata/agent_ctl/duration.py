"""Durations as Kata's agent-ctl takes them: nanoseconds, or numbers with a unit, such as 500ms or 1m30s."""

from __future__ import annotations

import re

from kata.errors import InvalidArgument

_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)")
#: A year: what is longer is a slip.
_MAX_S = 366 * 86400.0


def parse(text: str, what: str) -> float:
    """Parse a duration into seconds.

    Args:
        text: digits alone are nanoseconds.
        what: whose duration it is, for the error.

    Raises:
        InvalidArgument: it is not a duration, or longer than a year.
    """
    if text.isdecimal() and text.isascii():
        seconds = int(text) * 1e-9 if len(text) < 20 else _MAX_S + 1
    elif _PART.sub("", text) or not text:
        raise InvalidArgument(
            f"{what} {text!r} is not a duration", hint="such as 500ms, 5s or 1m30s; digits alone are nanoseconds"
        )
    else:
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if seconds > _MAX_S:
        raise InvalidArgument(f"{what} {text} is longer than a year")
    return seconds
