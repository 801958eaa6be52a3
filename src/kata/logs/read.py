"""Log files to entries in the order of time. Memory is bounded for each line, whatever a guest has written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import PurePath
from typing import BinaryIO

from kata.logs.entry import Entry, Kind
from kata.logs.parse import Origin, parse_line

#: Bytes of a line that are kept. The longest line of a component has a sixth of it.
MAX_LINE = 64 * 1024
_ORIGINS = {"console.log": Origin.CONSOLE, "console.log.1": Origin.CONSOLE}
_ORIGINS |= {"qemu.log": Origin.QEMU, "qemu.log.1": Origin.QEMU}


def origin_of(path: str) -> Origin:
    """What a file has, by its name in a sandbox's state directory."""
    return _ORIGINS.get(PurePath(path).name, Origin.LOG)


def read_entries(stream: BinaryIO, file: str, *, unpack: bool = True) -> Iterator[Entry]:
    """Yield an entry for each line that is not blank; of a longer line than MAX_LINE, one that says what is missing.

    Args:
        stream: what is read, to its end.
        file: where it is from; its name tells what it has.
        unpack: as in `parse_line`.

    Raises:
        OSError: it cannot be read.
    """
    origin = origin_of(file)
    for number, (line, cut) in enumerate(_lines(stream), 1):
        # Bytes that are not UTF-8 are shown, as \xff.
        entry = parse_line(line.decode(errors="backslashreplace"), file, number, origin, unpack=unpack)
        if entry is None:
            continue
        if cut:
            kind = Kind.BROKEN if entry.kind is Kind.RECORD else entry.kind
            entry = replace(entry, kind=kind, problem=f"{cut} more bytes of the line are left out")
        yield entry


def _lines(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Lines, each with how many bytes at its end are left out."""
    while line := stream.readline(MAX_LINE):
        cut = 0
        last = line
        while len(last) == MAX_LINE and not last.endswith(b"\n"):
            last = stream.readline(MAX_LINE)
            cut += len(last)
        yield line, cut


def merge(files: Iterable[Iterable[Entry]]) -> list[Entry]:
    """Sort the entries of all files by time.

    An entry without a time stays behind the one before it in its file; those before the first time stay before it. What
    has the same time stays in the order of the files and lines.
    """
    timed: list[tuple[int, int, Entry]] = []
    for entries in files:
        last: int | None = None
        waiting: list[Entry] = []
        for entry in entries:
            if entry.time is None and last is None:
                waiting.append(entry)
                continue
            last = last if entry.time is None else entry.time
            assert last is not None
            timed.extend((last, len(timed) + index, one) for index, one in enumerate([*waiting, entry]))
            waiting.clear()
        timed.extend((0 if last is None else last, len(timed) + index, one) for index, one in enumerate(waiting))
    timed.sort(key=lambda one: one[:2])
    return [entry for _, _, entry in timed]
