from __future__ import annotations

import ast
import shutil
import stat
from pathlib import Path

import pytest

from kata.errors import NotFound
from kata.osbuilder import agent_files


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "kata"
    for part in agent_files.PARTS:
        if part.endswith(".py"):
            source.mkdir(exist_ok=True)
            (source / part).write_text("")
        else:
            (source / part / "deep").mkdir(parents=True)
            (source / part / "deep" / "module.py").write_text(f"# {part}\n")
    return source


def test_only_modules_of_the_agents_parts_are_taken(source: Path) -> None:
    (source / "agent" / "__pycache__").mkdir()
    (source / "agent" / "__pycache__" / "module.cpython-311.pyc").touch()
    (source / "protocols" / "agent.proto").touch()
    (source / "shim").mkdir()
    (source / "shim" / "main.py").touch()
    files = agent_files.collect(source)
    assert "agent/deep/module.py" in files
    assert all(name.endswith(".py") and not name.startswith("shim") for name in files)
    assert list(files) == sorted(files)


@pytest.mark.parametrize("part", ["agent", "errors.py"])
def test_a_missing_part_is_named(source: Path, part: str) -> None:
    shutil.rmtree(source / part) if (source / part).is_dir() else (source / part).unlink()
    with pytest.raises(NotFound, match=part) as caught:
        agent_files.collect(source)
    assert caught.value.hint


def test_the_digest_follows_names_and_contents() -> None:
    digests = [
        agent_files.digest(files)
        for files in ({"a": b"1"}, {"a": b"2"}, {"b": b"1"}, {"a": b"1", "b": b""}, {"a": b"1\0b\0000\0"})
    ]
    assert len(set(digests)) == len(digests)
    assert agent_files.digest({"a": b"1"}) == digests[0]


def test_installed_files_can_be_read_and_the_launcher_run(tmp_path: Path, source: Path) -> None:
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    agent_files.install(agent_files.collect(source), root)
    assert (root / "usr/lib/kata/kata/agent/deep/module.py").read_text() == "# agent\n"
    launcher = root / "usr/bin/kata-agent"
    assert stat.S_IMODE(launcher.stat().st_mode) == 0o755
    text = launcher.read_text()
    # The kernel passes everything behind the interpreter as one word.
    assert text.splitlines()[0] == "#!/usr/bin/python3 -IS"
    ast.parse(text)


def test_this_package_has_all_parts() -> None:
    files = agent_files.collect(agent_files.source_directory())
    assert {"__init__.py", "errors.py", "agent/main.py", "ttrpc/__init__.py"} <= set(files)
