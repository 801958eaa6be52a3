"""One line of a log, and what is wrong with it.

Names and meanings of the fields are those of Kata's log parser.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

LEVELS = frozenset({"trace", "debug", "info", "notice", "warning", "error", "critical", "fatal", "panic"})

#: RFC 3339, with the space that some write for the T, and up to nine digits of a second.
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: What Go's fmt puts into a text whose arguments do not match its format.
_GO_MISTAKE = re.compile(r"%!(?:\w\(MISSING\)|\(BAD(?:INDEX|PREC|WIDTH)\)|\(EXTRA\b)")


class Kind(StrEnum):
    """What a line is.

    RECORD: what a component has logged. TEXT: what a guest's console, its kernel or QEMU has written without a format.
    GARBLED: an agent's record that cannot be read, as the kernel writes to the same console. BROKEN: anything else.
    """

    RECORD = "record"
    TEXT = "text"
    GARBLED = "garbled"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Entry:
    r"""One line of a log. Texts have no character that is not printable but "\n" and "\t".

    Attributes:
        file, line: where it is; lines are counted from 1.
        kind: what it is.
        msg: its message, or all of it if it is no record.
        time: nanoseconds since 1970, or None.
        level: one of LEVELS, or what stands there; "" if nothing does, as in all other texts.
        source: the part of the component.
        name: the component.
        pid: process id in the component's namespace, or 0.
        container, sandbox: ids.
        data: all other fields.
        problem: what is wrong with it, "" if nothing is.
    """

    file: str
    line: int
    kind: Kind
    msg: str
    time: int | None = None
    level: str = ""
    source: str = ""
    name: str = ""
    pid: int = 0
    container: str = ""
    sandbox: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


def missing_fields(entry: Entry) -> list[str]:
    """The fields that each record should have and this one has not; none for other lines."""
    if entry.kind is not Kind.RECORD:
        return []
    wanted = {
        "time": entry.time is not None,
        "level": entry.level,
        "pid": entry.pid,
        "source": entry.source,
        "name": entry.name,
    }
    return [name for name, found in wanted.items() if not found]


def wrong_value(entry: Entry) -> str:
    """What is wrong with a record's values, "" if nothing is."""
    if entry.level and entry.level not in LEVELS:
        return f"unknown level {entry.level!a}"
    for name, value in (("source", entry.source), ("name", entry.name)):
        if len(value.split()) > 1:
            return f"{name} has several words: {value!a}"
    for value in (entry.msg, *entry.data.values()):
        if mistake := _GO_MISTAKE.search(value):
            return f"{mistake[0]} shows a mistake of the program that wrote it"
    return ""


def parse_time(text: str) -> int | None:
    """Nanoseconds since 1970 of a time of RFC 3339; None if it is none."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    date, clock, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{date}T{clock}{'+00:00' if zone in 'Zz' else zone}")
        seconds = (moment - _EPOCH) // timedelta(seconds=1)
        (_EPOCH + timedelta(seconds=seconds)).isoformat()
    except (ValueError, OverflowError):
        return None
    return seconds * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))


def format_time(time: int | None) -> str:
    """Write a time as RFC 3339, in UTC and with nine digits of a second; "" for None."""
    if time is None:
        return ""
    seconds, nanos = divmod(time, 1_000_000_000)
    return f"{(_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]}.{nanos:09}Z"
