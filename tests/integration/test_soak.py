"""A minute of `make soak`, as a command: pods are cut short, nothing stays, and the report says so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.containerd, pytest.mark.long, pytest.mark.timeout(600)]


def test_a_minute_of_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.soak", "--minutes", "1", "--seed", "2", "--report", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": "/tmp"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = (tmp_path / "soak.md").read_text()
    assert "nothing stays, nothing grows" in report
    kills = re.search(r"^\| kills \| (\d+) ", report, re.MULTILINE)
    assert kills
    assert int(kills[1]) >= 3
