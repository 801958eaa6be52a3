"""The table of what differs on files: what is kept is not tried again; places where the same happens are one row."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.support.fileways import RUNC
from tools import file_table

WAYS = (RUNC, "layers, disk", "virtio-9p")


def told(different: dict[str, dict[str, str]]) -> dict[str, Any]:
    """What all programs tell of two checks, where they differ by "way: program in place"."""
    found: dict[str, Any] = {}
    for way, place, program in file_table._runs(WAYS):
        name = f"{way}: {program} in {place}"
        if program == "filespeed":
            found[name] = (
                {"create": 2.0, "stat": 1.0, "read": 4.0} if way == RUNC else dict.fromkeys(file_table._STEPS, 8)
            )
        else:
            found[name] = {f"{program} one": True, f"{program} two": True} | different.get(name, {})
    return found


def test_it_counts_and_puts_places_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(file_table, "PrivateContainerd", None)
    stale = {"filecheck one": "is not so"}
    kept = tmp_path / "kept"
    kept.write_text(
        json.dumps(
            told(
                {
                    "virtio-9p: filecheck in root": stale,
                    "virtio-9p: filecheck in volume": stale,
                    "virtio-9p: filecheck in two mounts": {"filecheck one": "ENOENT"},
                    "layers, disk: fileissues in root": {"fileissues two": "gone"},
                }
            )
        )
    )
    assert file_table.main(str(kept), *WAYS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| root | 6 of 6 | 5 of 6 | 5 of 6 |" in lines
    assert "| two mounts | 2 of 2 |  | 1 of 2 |" in lines
    assert [line for line in lines if line.startswith(("| filecheck ", "| fileissues "))] == [
        "| filecheck one | root, volume | yes | yes | is not so |",
        "| fileissues two | root | yes | gone | yes |",
        "| filecheck one | two mounts | yes |  | ENOENT |",
    ]
    assert "| root | 4.0 / 8.0 / 2.0 | 4.0 / 8.0 / 2.0 |" in lines
    assert "| volume |  | 4.0 / 8.0 / 2.0 |" in lines


def test_it_goes_on_after_a_program_that_told_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = []

    def fails_once(_: object, place: str, program: str) -> dict[str, bool]:
        tried.append((place, program))
        if tried.count(("root", "fileissues")) == 1 and tried[-1] == ("root", "fileissues"):
            raise AssertionError("a reason")
        return {"a check": True}

    monkeypatch.setattr(file_table, "PrivateContainerd", lambda: nullcontext(Mock()))
    monkeypatch.setattr(file_table, "python_archive", Mock())
    monkeypatch.setattr(file_table, "_speeds", lambda _: "")
    monkeypatch.setattr(file_table, "_tried", fails_once)
    kept = str(tmp_path / "kept")
    assert file_table.main(kept, RUNC) == 1
    assert "told nothing: a reason" in capsys.readouterr().err
    everything = len(tried)
    assert file_table.main(kept, RUNC) == 0
    assert tried[everything:] == [("root", "fileissues")]
