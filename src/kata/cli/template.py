r"""`--format`: rows as a template says, in the part of Go's templates that people type.

{{.ID}}                 a field
{{json .ID}}, {{json .}}  a field, or all fields, as JSON
{{upper .ID}}, {{lower .ID}}
\\t, \\n                  a tab, a line feed
table {{.ID}}\\t{{.Pod}}  a table with a heading; each tab begins a column
table, json             the usual table; all fields as JSON, one row a line
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from kata.cli.render import printable
from kata.errors import InvalidArgument

Template = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="TEMPLATE",
        help='"table", "json", or a template such as "{{.ID}}", "table {{.ID}}\\t{{.State}}" or "{{json .}}".',
        show_default=False,
    ),
]

_TABLE = "table"
_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)
_EXPRESSION = re.compile(r"(?:(json|upper|lower)\s+)?\.(\w*)|\.(\w+)\s*\|\s*(json|upper|lower)")
_ESCAPES = {"\\t": "\t", "\\n": "\n"}

#: A column: its heading, and the field it shows.
Columns = Mapping[str, str]


def render(template: str | None, rows: Sequence[Mapping[str, Any]], columns: Columns) -> str:
    """Write rows as a template says; every line ends with a line feed.

    Args:
        template: None for a table of all columns.
        rows: values by field.
        columns: the usual table's.

    Raises:
        InvalidArgument: the template is wrong, or names no field.
    """
    if template is None or template == _TABLE:
        return table([tuple(columns), *(tuple(_text(row[field]) for field in columns.values()) for row in rows)])
    if template == "json":
        template = "{{json .}}"
    is_table, body = template.startswith(f"{_TABLE} "), template.removeprefix(f"{_TABLE} ")
    fields = list(rows[0]) if rows else list(columns.values())
    line = _compile(body, fields, strict=bool(rows))
    if not is_table:
        return "".join(f"{line(row)}\n" for row in rows)
    headings = {field: heading for heading, field in columns.items()}
    head = _compile(re.sub(r"\b(json|upper|lower)\b", "", body), fields, strict=False)
    titles = head({field: headings.get(field, field.upper()) for field in fields})
    return table([text.split("\t") for text in (titles, *(line(row) for row in rows))])


def _compile(body: str, fields: Sequence[str], *, strict: bool) -> Callable[[Mapping[str, Any]], str]:
    for escape, character in _ESCAPES.items():
        body = body.replace(escape, character)
    parts: list[str | tuple[str, str]] = []
    end = 0
    for action in _ACTION.finditer(body):
        parts.append(body[end : action.start()])
        parts.append(_expression(action[1], fields, strict=strict))
        end = action.end()
    parts.append(body[end:])
    if any(isinstance(part, str) and ("{{" in part or "}}" in part) for part in parts):
        raise InvalidArgument(f"template {body!r}: braces that do not belong together")
    return lambda row: "".join(part if isinstance(part, str) else _value(row, *part) for part in parts)


def _expression(text: str, fields: Sequence[str], *, strict: bool) -> tuple[str, str]:
    found = _EXPRESSION.fullmatch(text)
    if found is None:
        raise InvalidArgument(
            f"template: cannot do {{{{{text}}}}}",
            hint="{{.Field}}, {{json .Field}}, {{json .}}, {{upper .Field}} and {{lower .Field}} are what there is",
        )
    function, field = found[1] or found[4] or "", found[2] or found[3] or ""
    if strict and field and field not in fields:
        by_lower = {one.lower(): one for one in fields}
        near = difflib.get_close_matches(field.lower(), by_lower, n=1)
        also = f", did you mean {by_lower[near[0]]}?" if near else ""
        raise InvalidArgument(f"template: no field {field}{also}", hint=f"fields: {', '.join(fields)}")
    if not field and function != "json":
        raise InvalidArgument("template: {{.}} is all fields: write {{json .}}, or name one")
    return function, field


def _value(row: Mapping[str, Any], function: str, field: str) -> str:
    value = row.get(field) if field else dict(row)
    if function == "json":
        return json.dumps(value)
    text = _text(value)
    return text.upper() if function == "upper" else text.lower() if function == "lower" else text


def _text(value: object) -> str:
    if value is None or value == "":
        return "-"
    # Names may be a guest's, or anybody's who may start a pod.
    return printable(str(value))


def table(rows: Iterable[Sequence[str]]) -> str:
    """Columns that are as wide as what is in them, and two spaces between them."""
    lines = [list(row) for row in rows]
    count = max(map(len, lines))
    widths = [max((len(row[column]) for row in lines if column < len(row)), default=0) for column in range(count)]
    return "".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)).rstrip() + "\n" for row in lines
    )
