"""The manual that `make install` installs, and `make uninstall` takes away."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tools import manual

PROJECT = Path(__file__).parents[3]


def recipe(target: str, prefix: Path, share: Path) -> str:
    """The lines of a target that are about the manual."""
    argv = ["make", "-n", target, f"PREFIX={prefix}", f"SHARE={share}", f"BIN={prefix}/links", "ANYWAY=1"]
    said = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=True, timeout=60).stdout
    return "\n".join(line for line in said.splitlines() if "find man" in line)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_it_is_linked_where_shells_and_man_look_and_taken_away(tmp_path: Path) -> None:
    prefix, share = tmp_path / "opt", tmp_path / "local"
    assert manual.main([str(prefix / "share")]) == 0
    ours = {path.relative_to(prefix / "share") for path in (prefix / "share").rglob("*") if path.is_file()}
    assert ours == {Path(name) for name in manual.files()}
    subprocess.run(["sh", "-ec", recipe("install", prefix, share)], check=True, timeout=60)
    links = {path.relative_to(share) for path in share.rglob("*") if path.is_symlink()}
    assert links == ours
    assert (share / "man/man1/kata.1").read_text().startswith(".TH KATA 1 ")
    (share / "man/man1/other.1").touch()
    subprocess.run(["sh", "-ec", recipe("uninstall", prefix, share)], check=True, timeout=60)
    assert [path.name for path in share.rglob("*") if not path.is_dir()] == ["other.1"]


def test_how_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    assert manual.main(["a", "b"], said.append) == 2
    assert "python -m tools.manual" in said[0]
