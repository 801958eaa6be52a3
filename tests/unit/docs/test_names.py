"""What the documents name exists: modules, imports, files, links and their anchors, commands and make targets."""

from __future__ import annotations

import ast
import importlib
import os
import re
from pathlib import Path

import pytest

from kata.agent import console
from kata.agent_ctl.catalog import RPCS
from kata.cli.main import invoke
from kata.policy.document import OWN_CALLS
from kata.protocols import forward, processes, standby, traces
from kata.runtime.hypervisor.trial_boot import PROBE_PARAMETER
from kata.runtime.tracing import identity
from tests.support.documents import ROOT, documents

DOCUMENTS = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in documents()]
#: Names that look like modules: a serial port, ttrpc services and calls, a kernel parameter, attributes of spans.
NOT_MODULES = {
    console.PORT, forward.SERVICE, processes.SERVICE, standby.SERVICE, traces.SERVICE, PROBE_PARAMETER,
    identity.SANDBOX, identity.EXEC, *OWN_CALLS.values(),
}  # fmt: skip

_MODULE = re.compile(r"(?<![\w./-])kata(?:\.[A-Za-z_]\w*)+")
_PATH = re.compile(r"(?<![\w./-])(?:\.ci|benchmarks|deploy|docs|src|tests|tools)/[\w./*{},-]*")
_FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def code_of(text: str) -> list[str]:
    """The commands and names in it: the lines of code blocks, and code spans."""
    blocks = [line for _, block in _FENCED.findall(text) for line in block.splitlines()]
    return [*blocks, *_CODE_SPAN.findall(_FENCED.sub("", text).replace("\n", " "))]


def is_importable(name: str) -> bool:
    """Whether it is a module, or an attribute (of an attribute …) of one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def alternatives(path: str) -> list[str]:
    """`a/{b,c}` is `a/b` and `a/c`."""
    braces = re.search(r"\{([^{}]*)\}", path)
    if braces is None:
        return [path]
    return [path[: braces.start()] + choice + path[braces.end() :] for choice in braces[1].split(",")]


def is_there(path: str) -> bool:
    """Whether a path or pattern of the repository names a file, or a folder that is more than old bytecode."""
    return any(
        found.is_file() or any(file.is_file() and file.suffix != ".pyc" for file in found.rglob("*"))
        for found in ROOT.glob(path.rstrip("/"))
    )


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_modules(document: Path) -> None:
    named = set(_MODULE.findall(text_of(document))) - NOT_MODULES
    assert [name for name in sorted(named) if not is_importable(name)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_imports(document: Path) -> None:
    for language, block in _FENCED.findall(text_of(document)):
        if language != "python":
            continue
        tree = compile(block, str(document), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert [name.name for name in node.names if not is_importable(f"{node.module}.{name.name}")] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths(document: Path) -> None:
    named = {path.rstrip(".,") for path in _PATH.findall(text_of(document))}
    missing = [path for path in sorted(named) if not all(map(is_there, alternatives(path)))]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links(document: Path) -> None:
    for link in _LINK.findall(text_of(document)):
        path, _, anchor = link.partition("#")
        target = Path(os.path.normpath(document.parent / path)) if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(text_of(target)), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {name for code in code_of(text_of(document)) for name in re.findall(r"^make ([a-z-]+)", code)}
    assert named - targets == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["--help"]) == 0
    commands = set(re.findall(r"^  ([a-z-]+) ", capsys.readouterr().out.partition("Commands:")[2], re.MULTILINE))
    named = {
        name for code in code_of(text_of(document)) for name in re.findall(r"^(?:[$#] )?kata ([a-z][a-z-]*)", code)
    }
    assert named - commands == set()


def test_every_module_of_the_agent_has_its_place() -> None:
    """The table of docs/agent.md names each file, and nothing else."""
    table = text_of(ROOT / "docs/agent.md").partition("\n## Source files\n")[2].partition("\n## ")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in _CODE_SPAN.findall(row)}
    agent = ROOT / "src/kata/agent"
    files = {path.name for path in agent.glob("*.py") if not path.name.startswith("__")}
    assert named == files | {f"{path.parent.name}/" for path in agent.glob("*/__init__.py")}


def test_every_rpc_of_the_agent_is_served_or_said_not_to_be() -> None:
    """By the tables of docs/agent.md; tests/vm/test_agent_ctl.py calls each, to see whether it is true."""
    services = text_of(ROOT / "docs/agent.md").partition("\n## Services\n")[2].partition("\n## ")[0]
    served, _, refused = services.partition("RPCs are answered with UNIMPLEMENTED")
    named = [{*re.findall(r"\w+", table)} & RPCS.keys() for table in (served, refused.partition("A failed call")[0])]
    assert named[0] & named[1] == set()
    assert named[0] | named[1] == RPCS.keys()


def test_what_is_gone_would_be_seen() -> None:
    assert is_importable("kata.ttrpc.Client")
    assert not is_importable("kata.nowhere")
    assert is_there("tests/unit/docs/test_*.py")
    assert not is_there("tests/unit/nowhere")
    assert alternatives("src/kata/{agent,oci}") == ["src/kata/agent", "src/kata/oci"]
    assert anchors_of("# `kata run`: a VM\n```sh\n# no heading\n```\n## 9p or virtio-fs\n") == {
        "kata-run-a-vm",
        "9p-or-virtio-fs",
    }
