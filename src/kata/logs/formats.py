"""Entries as text for people, and in the formats of Kata's log parser, with its names of fields.

A value has no character that a terminal or a parser interprets: `kata.logs.parse` escapes them. CSV has two dangers of
its own, see `_csv`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TextIO

from kata.logs.entry import Entry, Kind, format_time
from kata.logs.visible import visible

#: Of Kata's format; `Problem` is in addition to it.
FORMAT_VERSION = "0.0.2"
#: A spreadsheet takes a cell that begins so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t")


def rows(entries: Iterable[Entry]) -> Iterator[dict[str, Any]]:
    """Yield what is written of each entry: its number, from 1, and nanoseconds since the entry before it."""
    before: int | None = None
    for count, entry in enumerate(entries, 1):
        delta = 0 if entry.time is None or before is None else entry.time - before
        before = before if entry.time is None else entry.time
        yield {
            "Data": dict(entry.data),
            "Time": format_time(entry.time),
            "Filename": visible(entry.file),
            "Level": entry.level,
            "Msg": entry.msg,
            "Source": entry.source,
            "Name": entry.name,
            "Container": entry.container,
            "Sandbox": entry.sandbox,
            "Line": entry.line,
            "Count": count,
            "TimeDelta": delta,
            "Pid": entry.pid,
            "Problem": entry.problem or ("" if entry.kind in (Kind.RECORD, Kind.TEXT) else entry.kind.value),
        }


def _text(entries: Iterable[Entry], out: TextIO) -> None:
    """A line for each entry: seconds since the one before, time, level, who, message, data."""
    for row in rows(entries):
        pid = f"[{row['Pid']}]" if row["Pid"] else ""
        who = f"{row['Name']}{pid} {row['Source']}".strip() or "-"
        ids = "".join(f" {name.lower()}={row[name]}" for name in ("Sandbox", "Container") if row[name])
        data = "".join(f" {key}={_quoted(value)}" for key, value in row["Data"].items())
        problem = f"  ({row['Problem']}, {row['Filename']} line {row['Line']})" if row["Problem"] else ""
        when = f"{row['TimeDelta'] / 1e9:+12.6f} {row['Time'] or '-':30}"
        out.write(visible(f"{when} {row['Level'] or '-':8} {who}{ids}: {row['Msg']}{data}{problem}") + "\n")


def _quoted(value: str) -> str:
    return value if value and value.isprintable() and not set(value) & set(' ="') else json.dumps(value)


def _json(entries: Iterable[Entry], out: TextIO) -> None:
    out.write(f'{{"FormatVersion": "{FORMAT_VERSION}", "Entries": [')
    for row in rows(entries):
        out.write((",\n" if row["Count"] > 1 else "\n") + json.dumps(row, ensure_ascii=False))
    out.write("\n]}\n")


def _csv(entries: Iterable[Entry], out: TextIO) -> None:
    """Lines after one with the names; the data are JSON in a cell. What looks like a formula gets an apostrophe."""
    import csv

    writer = csv.writer(out, lineterminator="\n")
    for row in rows(entries):
        if row["Count"] == 1:
            writer.writerow(row)
        row["Data"] = json.dumps(row["Data"], ensure_ascii=False)
        writer.writerow(
            [f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value for value in row.values()]
        )


def _yaml(entries: Iterable[Entry], out: TextIO) -> None:
    import yaml

    # The one in C is ten times faster, where PyYAML has it.
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    out.write(f'FormatVersion: "{FORMAT_VERSION}"\nEntries:\n')
    empty = True
    for row in rows(entries):
        yaml.dump([row], out, dumper, sort_keys=False, allow_unicode=True, width=2**16)
        empty = False
    if empty:
        out.write("  []\n")


def _toml(entries: Iterable[Entry], out: TextIO) -> None:
    import tomli_w

    out.write(tomli_w.dumps({"FormatVersion": FORMAT_VERSION, "Entries": list(rows(entries))}))


def _xml(entries: Iterable[Entry], out: TextIO) -> None:
    """An element for each field, and in `Data` one with the name as attribute, since any text can be a name."""
    from xml.sax.saxutils import escape, quoteattr

    def elements(row: Mapping[str, Any]) -> Iterator[str]:
        for name, value in row.items():
            if name == "Data":
                fields = (f"<Field name={quoteattr(key)}>{escape(text)}</Field>" for key, text in value.items())
                yield f"<Data>{''.join(fields)}</Data>"
            else:
                yield f"<{name}>{escape(str(value))}</{name}>"

    out.write(f'<?xml version="1.0" encoding="UTF-8"?>\n<LogEntries><FormatVersion>{FORMAT_VERSION}</FormatVersion>\n')
    for row in rows(entries):
        out.write(f"<Entries>{''.join(elements(row))}</Entries>\n")
    out.write("</LogEntries>\n")


#: By the names that the command line takes.
FORMATS: Mapping[str, Callable[[Iterable[Entry], TextIO], None]] = {
    "csv": _csv,
    "json": _json,
    "text": _text,
    "toml": _toml,
    "xml": _xml,
    "yaml": _yaml,
}
