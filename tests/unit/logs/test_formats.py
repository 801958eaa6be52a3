from __future__ import annotations

import csv
import io
import json
import tomllib
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kata.logs.entry import Entry
from kata.logs.formats import FORMATS, rows
from kata.logs.parse import parse_line

LINES = [
    'time="2026-11-30T10:00:00.5Z" level=info msg="a <b>&amp;</b> \\"q\\"" name=n pid=3 source=s sandbox=box k="v w"',
    "no record\x1b[2J\x07 \u202e]]>",
    'time="2026-11-30T10:00:02Z" level=error msg="two\\nlines, =1+1" name=n pid=3 source=s "',
]


def entries_of(*lines: str) -> list[Entry]:
    return [entry for number, line in enumerate(lines, 1) if (entry := parse_line(line, "/f", number))]


def written(name: str, entries: list[Entry]) -> str:
    out = io.StringIO()
    FORMATS[name](entries, out)
    return out.getvalue()


def read(name: str, text: str) -> list[dict[str, Any]]:
    """Back to rows, by the standard's reader of each format."""
    if name == "csv":
        return [
            row
            | {"Data": json.loads(row["Data"])}
            | {key: int(row[key].removeprefix("'")) for key in ("Line", "Count", "TimeDelta", "Pid")}
            for row in csv.DictReader(io.StringIO(text, newline=""))
        ]
    if name == "xml":
        return [_row(element) for element in ElementTree.fromstring(text).findall("Entries")]
    readers: dict[str, Callable[[str], Any]] = {"json": json.loads, "yaml": yaml.safe_load, "toml": tomllib.loads}
    document = readers[name](text)
    assert document["FormatVersion"] == "0.0.2"
    return list(document["Entries"])


def _row(element: ElementTree.Element) -> dict[str, Any]:
    row: dict[str, Any] = {field.tag: field.text or "" for field in element}
    row["Data"] = {field.attrib["name"]: field.text or "" for field in element.findall("Data/Field")}
    return row | {key: int(row[key]) for key in ("Line", "Count", "TimeDelta", "Pid")}


MACHINE_READABLE = sorted(set(FORMATS) - {"text"})


@pytest.mark.parametrize("name", MACHINE_READABLE)
def test_what_is_written_can_be_read(name: str) -> None:
    entries = entries_of(*LINES)
    assert read(name, written(name, entries)) == list(rows(entries))
    assert read(name, written(name, [])) == []


@pytest.mark.parametrize("name", MACHINE_READABLE)
@given(st.lists(st.text()))
def test_whatever_it_is(name: str, lines: list[str]) -> None:
    entries = entries_of(*lines, *(f"level=info msg={json.dumps(line)} {'k' + str(len(line))}=1" for line in lines))
    text = written(name, entries)
    found = read(name, text)
    if name == "csv":  # an apostrophe is before what looks like a formula
        found = [row | {"Msg": row["Msg"].removeprefix("'")} for row in found]
        expected = [row | {"Msg": row["Msg"].removeprefix("'")} for row in rows(entries)]
    else:
        expected = list(rows(entries))
    assert found == expected


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_nothing_reaches_the_terminal_but_text(name: str) -> None:
    text = written(name, entries_of(*LINES))
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "\\x1b[2J" in text.replace("\\\\", "\\")


def test_fields_have_katas_names() -> None:
    document = json.loads(written("json", entries_of(*LINES)))
    assert [(entry["Count"], entry["TimeDelta"], entry["Problem"]) for entry in document["Entries"]] == [
        (1, 0, ""),
        (2, 0, "neither logfmt nor JSON"),
        (3, 0, "no record in logfmt: no key=value pair at character 86"),
    ]
    first = document["Entries"][0]
    assert {key: first[key] for key in ("Time", "Level", "Name", "Pid", "Source", "Sandbox", "Data")} == {
        "Time": "2026-11-30T10:00:00.500000000Z",
        "Level": "info",
        "Name": "n",
        "Pid": 3,
        "Source": "s",
        "Sandbox": "box",
        "Data": {"k": "v w"},
    }


def test_text_is_a_line_for_each() -> None:
    second = LINES[0].replace("00.5Z", "02.75Z").replace('msg="a', 'msg="two\\nlines')
    lines = written("text", entries_of(LINES[0], second, "broken")).splitlines()
    assert lines[0] == (
        '   +0.000000 2026-11-30T10:00:00.500000000Z info     n[3] s sandbox=box: a <b>&amp;</b> "q" k="v w"'
    )
    assert lines[1].startswith(
        "   +2.250000 2026-11-30T10:00:02.750000000Z info     n[3] s sandbox=box: two\\nlines <b>"
    )
    assert lines[2].endswith("-: broken  (neither logfmt nor JSON, /f line 3)")


def test_a_cell_is_no_formula() -> None:
    [row] = read("csv", written("csv", entries_of('level=info msg="=HYPERLINK(1)" time="2026-11-30T10:00:00Z"')))
    assert row["Msg"] == "'=HYPERLINK(1)"
