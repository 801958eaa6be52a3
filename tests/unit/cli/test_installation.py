from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kata.cli import check, engine_setup, installation
from kata.cli.main import invoke


@pytest.fixture
def listing(tmp_path: Path) -> Path:
    lines = []
    for name in ("a.py", "b/c.so"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
        lines.append(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n")
    (tmp_path / "SHA256SUMS").write_text("".join(lines))
    return tmp_path / "SHA256SUMS"


def test_what_is_missing_or_differs(listing: Path) -> None:
    assert installation.damaged(listing) == []
    (listing.parent / "a.py").write_text("a.p")
    (listing.parent / "b/c.so").unlink()
    assert installation.damaged(listing) == ["a.py", "b/c.so"]
    assert installation.damaged(listing.with_name("none")) == []


def test_kata_setup_says_so(listing: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(check, "check", lambda: iter(()))
    monkeypatch.setattr(engine_setup, "damaged", lambda: installation.damaged(listing))
    (listing.parent / "a.py").unlink()
    assert invoke(["setup"]) == 1
    assert "1 of this installation's files are missing or differ, such as a.py" in capsys.readouterr().out
