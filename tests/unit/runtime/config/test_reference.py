"""What is generated from the table is checked in, and fresh."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import kata.runtime.config
from kata.runtime.config.loader import load
from kata.runtime.config.reference import default_toml, markdown
from kata.runtime.config.settings import SECTIONS, Config

PACKAGE = Path(kata.runtime.config.__file__).parent
PAGE = Path(__file__).parents[4] / "docs/reference/configuration.md"


@pytest.mark.parametrize(
    ("path", "content", "command"),
    [(PAGE, markdown(), "docs"), (PACKAGE / "configuration.toml", default_toml(), "default")],
)
def test_generated_files_are_fresh(path: Path, content: str, command: str) -> None:
    assert path.read_text() == content, f"run: python3 -m kata.runtime.config {command} > {path.name}"


def test_the_shipped_file_changes_nothing() -> None:
    loaded = load(PACKAGE / "configuration.toml")
    assert (loaded.config, loaded.warnings) == (Config(), ())


def test_the_shipped_file_shows_every_setting_with_its_default() -> None:
    uncommented = re.sub(r"^#(?=[a-z])", "", default_toml(), flags=re.MULTILINE)
    loaded = load(body=uncommented.encode())
    assert (loaded.config, loaded.warnings) == (Config(), ())
    for section in SECTIONS:
        for key in section.settings:
            assert re.search(rf"^#{key} = ", default_toml(), re.MULTILINE)


def test_the_module_prints_them() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kata.runtime.config", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert run("default").stdout == default_toml()
    wrong = run("nonsense")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "usage" in wrong.stderr
