from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from kata.cli import timings
from kata.cli.main import invoke
from kata.errors import InvalidArgument, NotFound
from kata.sandbox.timings import Phase, Timings

PHASES = [Phase("plan", "", 0.0, 10.0), Phase("qemu", "", 10.0, 80.0), Phase("first output", "box", 100.0, 0.0)]


def shown(phases: list[Phase]) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(timings.as_table(phases))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_row_for_each_phase_with_its_place() -> None:
    rows = {line.split("  ")[0].strip(): line for line in shown(PHASES).splitlines()}
    assert "80.0" in rows["qemu"]
    assert "box" in rows["first output"]
    assert rows["qemu"].count("━") == 32
    assert rows["first output"].rstrip().endswith("━")
    assert rows["qemu"].index("━") > rows["plan"].index("━")


def test_nothing_yet() -> None:
    assert "PHASE" in shown([])


def test_a_sandbox_by_its_id(tmp_path: Path) -> None:
    (tmp_path / "box").mkdir()
    Timings(tmp_path / "box", time.monotonic()).moment("first output", "box")
    assert [phase.name for phase in timings.load("box", tmp_path)] == ["first output"]
    with pytest.raises(NotFound, match="sandbox other does not exist"):
        timings.load("other", tmp_path)
    with pytest.raises(InvalidArgument):
        timings.load("../box", tmp_path)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(timings, "load", lambda sandbox: PHASES)
    assert invoke(["timings", "box", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1] == {
        "name": "qemu", "subject": "", "begin_ms": 10.0, "length_ms": 80.0
    }  # fmt: skip
    assert invoke(["timings", "box"]) == 0
    assert "first output" in capsys.readouterr().out


def test_no_such_sandbox(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["timings", "no-such-sandbox"]) == 1
    assert "sandbox no-such-sandbox does not exist" in capsys.readouterr().err
