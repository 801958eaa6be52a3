"""SPECIFICATION.md: each promise names the tests that hold it, and they are there, where it says that they run.

Tests are found by their source: nothing is imported, so it does not matter what this host can run.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SPECIFICATION = ROOT / "SPECIFICATION.md"

#: "- **1.2** A sentence.", then the tests, each on a line of its own.
_PROMISE = re.compile(r"^- \*\*(\d+\.\d+)\*\* (.*)$")
_TEST = re.compile(r"^  - `(tests/[^`]+)`(?: \(nightly: (long|nested)\))?$")


def promises(text: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each promise: its number, and its tests with what runs them at night ("" if `make test` does)."""
    lines = text.splitlines()
    begins = [index for index, line in enumerate(lines) if _PROMISE.match(line)]
    for begin, end in zip(begins, [*begins[1:], len(lines)], strict=True):
        number = _PROMISE.match(lines[begin])
        assert number
        found = (_TEST.match(line) for line in lines[begin + 1 : end])
        yield number[1], [(test[1], test[2] or "") for test in found if test]


@cache
def statements(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text(encoding="utf-8")).body


def marked_long(nodes: list[ast.expr]) -> bool:
    """Whether `pytest.mark.long` is among the marks themselves, and not only at some parameters."""
    flat = [element for node in nodes for element in (node.elts if isinstance(node, ast.List) else [node])]
    return any(ast.unparse(node) == "pytest.mark.long" for node in flat)


def runs_at(root: Path, test: str) -> str | None:
    """What runs a test: "" for `make test`, "long", "nested"; None if there is no such test."""
    path, *names = test.split("::")
    file = root / path
    if not names or not names[-1].startswith("test") or not file.is_file():
        return None
    body = statements(file)
    marks = [
        node.value
        for node in body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["pytestmark"]
    ]
    for name in names:
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef) if name == names[-1] else (ast.ClassDef,)
        node = next((node for node in body if isinstance(node, kinds) and node.name == name), None)
        if node is None:
            return None
        marks += node.decorator_list
        body = node.body
    if Path(path).is_relative_to("tests/nested"):
        return "nested"
    return "long" if marked_long(marks) else ""


def problems(text: str, root: Path) -> list[str]:
    """What is wrong with a specification."""
    found = list(promises(text))
    told = [f"{number} is there {count} times" for number, count in Counter(n for n, _ in found).items() if count > 1]
    for number, tests in found:
        if not tests:
            told.append(f"{number} names no test")
        for test, said in tests:
            runs = runs_at(root, test)
            if runs is None:
                told.append(f"{number}: there is no {test}")
            elif runs != said:
                told.append(f"{number}: {test} is run by {runs or 'make test'}, and not by {said or 'make test'}")
    return told


def test_every_promise_is_held_by_tests_that_are_there() -> None:
    assert problems(SPECIFICATION.read_text(encoding="utf-8"), ROOT) == []


def test_every_line_is_understood() -> None:
    """A promise, or a test, that is written in another way would be held by nothing."""
    text = SPECIFICATION.read_text(encoding="utf-8")
    section = text.partition("\n## 1. ")[2].partition("\n## What is not promised")[0].splitlines()
    numbers = [line for line in section if re.match(r"\s*[-*] .*\d\.\d", line) and "::" not in line]
    assert [line for line in numbers if not _PROMISE.match(line)] == []
    assert [line for line in section if "::" in line and not _TEST.match(line)] == []
    assert len(numbers) > 50


_FILE = """
import pytest
pytestmark = [pytest.mark.vm]
ROUNDS = pytest.mark.parametrize("rounds", [1, pytest.param(9, marks=pytest.mark.long)])
@ROUNDS
def test_short(rounds): ...
@pytest.mark.long
async def test_long(): ...
class TestKind:
    def test_inner(self): ...
def helper(): ...
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- **1.1** Right.\n  - `tests/test_a.py::test_short`\n  - `tests/test_a.py::TestKind::test_inner`\n", []),
        ("- **1.1** Right.\n  - `tests/test_a.py::test_long` (nightly: long)\n", []),
        ("- **1.1** Right.\n  - `tests/nested/test_b.py::test_short` (nightly: nested)\n", []),
        ("- **1.1** One.\n- **1.2** Two.\n  - `tests/test_a.py::test_short`\n", ["1.1 names no test"]),
        ("- **1.1** Gone.\n  - `tests/test_a.py::test_gone`\n", ["1.1: there is no tests/test_a.py::test_gone"]),
        ("- **1.1** No file.\n  - `tests/test_c.py::test_a`\n", ["1.1: there is no tests/test_c.py::test_a"]),
        ("- **1.1** No test.\n  - `tests/test_a.py::helper`\n", ["1.1: there is no tests/test_a.py::helper"]),
        ("- **1.1** A file.\n  - `tests/test_a.py`\n", ["1.1: there is no tests/test_a.py"]),
        (
            "- **1.1** Elsewhere.\n  - `tests/test_a.py::TestKind::test_short`\n",
            ["1.1: there is no tests/test_a.py::TestKind::test_short"],
        ),
        (
            "- **1.1** Long.\n  - `tests/test_a.py::test_long`\n",
            ["1.1: tests/test_a.py::test_long is run by long, and not by make test"],
        ),
        (
            "- **1.1** Nested.\n  - `tests/nested/test_b.py::test_short`\n",
            ["1.1: tests/nested/test_b.py::test_short is run by nested, and not by make test"],
        ),
        (
            "- **1.1** Short.\n  - `tests/test_a.py::test_short` (nightly: long)\n",
            ["1.1: tests/test_a.py::test_short is run by make test, and not by long"],
        ),
        (
            "- **1.1** One.\n  - `tests/test_a.py::test_short`\n- **1.1** Two.\n  - `tests/test_a.py::test_short`\n",
            ["1.1 is there 2 times"],
        ),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, told: list[str]) -> None:
    (tmp_path / "tests/nested").mkdir(parents=True)
    for name in ("test_a.py", "nested/test_b.py"):
        (tmp_path / "tests" / name).write_text(_FILE)
    assert problems(text, tmp_path) == told


def test_marks_of_a_whole_file_count(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    for name, mark in (("one", "pytest.mark.long"), ("list", "[pytest.mark.vm, pytest.mark.long]")):
        (tmp_path / f"tests/test_{name}.py").write_text(f"pytestmark = {mark}\ndef test_it(): ...\n")
        assert runs_at(tmp_path, f"tests/test_{name}.py::test_it") == "long"
