"""Moments as people type them, for `--since`."""

from __future__ import annotations

import re
import time

from kata.errors import InvalidArgument
from kata.logs.entry import parse_time

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGO = re.compile(r"(?:\d{1,9}[smhd])+", re.ASCII)
_SECONDS = re.compile(r"\d{9,11}(?:\.\d{1,9})?", re.ASCII)


def parse_since(text: str, now: float | None = None) -> float:
    """Seconds since 1970 of a length of time before now (`90s`, `1h30m`), an RFC 3339 time, or seconds since 1970.

    Raises:
        InvalidArgument: it is none of these.
    """
    if _AGO.fullmatch(text):
        parts = re.findall(r"(\d+)([smhd])", text)
        return (time.time() if now is None else now) - sum(int(number) * _UNITS[unit] for number, unit in parts)
    if _SECONDS.fullmatch(text):
        return float(text)
    found = parse_time(text)
    if found is None:
        raise InvalidArgument(
            f"--since {text!r} is no time", hint="90s, 10m, 1h30m, 2d; 2026-11-30T10:00:00Z; seconds since 1970"
        )
    return found / 1e9
