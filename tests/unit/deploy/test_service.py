"""The systemd unit of kata-monitor runs what `make install` installs."""

from __future__ import annotations

import re
import shlex
from configparser import RawConfigParser
from pathlib import Path

from kata.monitor.main import invoke

ROOT = Path(__file__).parents[3]


def test_the_unit_runs_what_is_installed() -> None:
    unit = RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "deploy/kata-monitor.service")
    program, *options = shlex.split(unit["Service"]["ExecStart"])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    (directory,) = re.findall(r"^BIN \?= (.*)$", makefile, re.MULTILINE)
    (commands,) = re.findall(r"^COMMANDS := ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    assert Path(program).parent == Path(directory)
    assert Path(program).name in commands.split()
    # Whatever options it has are taken: they come before the one that ends it.
    assert invoke([*options, "--version"]) == 0
