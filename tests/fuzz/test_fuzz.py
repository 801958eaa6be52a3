"""What each target's corpus has is borne, a small run finds nothing, and what is wrong would be found."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped]
import pytest

from tests.fuzz import engine, target
from tests.fuzz.target import TARGETS, Target, check

for module in engine.MODULES:
    importlib.import_module(module)

REPOSITORY = Path(__file__).parents[2]
#: Of the small run: the same ones each time, some seconds of CPU time.
INPUTS = 5_000


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_corpus(name: str) -> None:
    found = sorted(TARGETS[name].seeds.iterdir())
    assert found
    for path in found:
        check(TARGETS[name], path.read_bytes())


def test_no_corpus_is_without_a_target() -> None:
    assert {path.name for path in target.CORPUS.iterdir()} == set(TARGETS)


def test_a_small_run(tmp_path: Path) -> None:
    command = ["-m", "tests.fuzz", "--inputs", str(INPUTS), "--jobs", "1", "--seed", "1", "--work", str(tmp_path)]
    done = subprocess.run([sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    findings = "\n".join(path.read_text(errors="replace") for path in tmp_path.glob("*/findings/*.txt"))
    assert done.returncode == 0, done.stderr + done.stdout + findings
    assert sum(f"| {name} |" in done.stdout for name in TARGETS) == len(TARGETS)
    assert "0 findings" in done.stdout


def _broken(data: bytes) -> None:
    """Breaks, by the first byte."""
    if data[:1] == b"K":
        raise RuntimeError("a defect")
    while data[:1] == b"L":
        pass
    if data[:1] == b"M":
        bytearray(2 * engine.MAX_MEMORY)


@pytest.mark.parametrize(("byte", "kind"), [(b"K", "RuntimeError"), (b"L", "Slow"), (b"M", "MemoryError")])
def test_what_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, byte: bytes, kind: str) -> None:
    monkeypatch.setattr(target, "CORPUS", tmp_path / "seeds")
    monkeypatch.setattr(target, "MAX_CPU_S", 0.3)
    broken = Target("broken", _broken, (), False, 1)
    broken.seeds.mkdir(parents=True)
    (broken.seeds / "seed").write_bytes(byte)
    found = engine.Campaign(tmp_path / "work", jobs=1, seed=1).run({broken: 10})["broken"]
    said = (tmp_path / "work/broken/log").read_text(errors="replace")
    assert [name.rpartition("-")[2] for name in found.findings][:1] == [kind], said[-4000:]
    (kept,) = (path for path in (tmp_path / "work/broken/findings").iterdir() if path.suffix != ".txt")
    assert kept.read_bytes() == byte


def _whole(data: bytes) -> object:
    """Has a branch."""
    return 1 if data[:1] == b"a" else 2


def test_it_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "CORPUS", tmp_path / "seeds")
    one = Target("whole", atheris.instrument_func(_whole), (), False, 1)
    one.seeds.mkdir(parents=True)
    (one.seeds / "seed").write_bytes(b"a")
    for inputs in (100, 100, 250):
        found = engine.Campaign(tmp_path, jobs=1, seed=1).run({one: inputs})[one.name]
        assert inputs <= found.inputs <= inputs + 2
