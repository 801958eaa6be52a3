"""The reference names every command and every option of `kata run`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kata.cli.main import invoke

REFERENCE = Path(__file__).parents[3] / "docs/reference/cli.md"


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert invoke([*command, "--help"]) == 0
    return capsys.readouterr().out


def test_every_command_has_its_section(capsys: pytest.CaptureFixture[str]) -> None:
    listed = help_of(capsys).partition("Commands:")[2]
    commands = re.findall(r"^  ([a-z]+) ", listed, re.MULTILINE)
    assert "run" in commands
    sections = re.findall(r"^## kata ([a-z]+)$", REFERENCE.read_text(), re.MULTILINE)
    assert sections == commands


@pytest.mark.parametrize("command", ["run", "check", "env", "gc", "list", "timings", "bundle", "logs parse"])
def test_every_option_is_described(capsys: pytest.CaptureFixture[str], command: str) -> None:
    options = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", help_of(capsys, *command.split()), re.MULTILINE)) - {"--help"}
    section = REFERENCE.read_text().partition(f"## kata {command.split()[0]}\n")[2].partition("\n## ")[0]
    assert options == set(re.findall(r"--[a-z][a-z-]+", section))
