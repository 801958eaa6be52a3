from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.cli.template import render
from kata.errors import InvalidArgument

ROWS: list[dict[str, Any]] = [
    {"ID": "a", "State": "running", "Pod": None, "VCPUs": 2},
    {"ID": "bb", "State": "dead", "Pod": "x/\x1b", "VCPUs": 0},
]
COLUMNS = {"SANDBOX": "ID", "STATE": "State"}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (None, "SANDBOX  STATE\na        running\nbb       dead\n"),
        ("table", "SANDBOX  STATE\na        running\nbb       dead\n"),
        ("{{.ID}}", "a\nbb\n"),
        ("{{ .ID }}: {{- .State -}}", "a: running\nbb: dead\n"),
        (r"{{.ID}}\t{{.Pod}}", "a\t-\nbb\tx/\\x1b\n"),
        ("{{json .Pod}} {{.VCPUs | json}}", 'null 2\n"x/\\u001b" 0\n'),
        ("{{upper .State}}{{lower .ID}}", "RUNNINGa\nDEADbb\n"),
        (r"table {{.ID}}\t{{.VCPUs}}", "SANDBOX  VCPUS\na        2\nbb       0\n"),
        ("json", '{"ID": "a", "State": "running", "Pod": null, "VCPUs": 2}\n'),
        ("{{json .}}", '{"ID": "a", "State": "running", "Pod": null, "VCPUs": 2}\n'),
        ("plain", "plain\nplain\n"),
    ],
)
def test_templates(template: str | None, text: str) -> None:
    assert render(template, ROWS, COLUMNS).startswith(text)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{.Id}}", "no field Id, did you mean ID?"),
        ("{{.}}", "is all fields"),
        ("{{range .}}", "cannot do"),
        ("{{.ID", "braces"),
        ("}}", "braces"),
        ("{{}}", "cannot do"),
    ],
)
def test_wrong_templates(template: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said.replace("?", r"\?")):
        render(template, ROWS, COLUMNS)


def test_no_rows() -> None:
    assert render(None, [], COLUMNS) == "SANDBOX  STATE\n"
    assert render("{{.Anything}}", [], COLUMNS) == ""
    with pytest.raises(InvalidArgument):
        render("{{range}}", [], COLUMNS)


@given(st.text(alphabet="{}. |ID\tjsonrange\\t-", max_size=40))
def test_any_text_is_a_template_or_an_error(template: str) -> None:
    try:
        render(template, ROWS, COLUMNS)
    except InvalidArgument:
        pass
