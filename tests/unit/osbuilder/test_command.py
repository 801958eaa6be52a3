"""Tools of the host: what they print, how they fail, and that none outlives its deadline."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from kata.command import run
from kata.errors import DeadlineExceeded, Internal


def test_output_comes_back() -> None:
    assert run(["sh", "-c", "echo $PYTHONHASHSEED; pwd"], timeout=10, cwd=Path("/")) == "0\n/\n"


def test_a_failure_is_told_with_its_last_words() -> None:
    with pytest.raises(Internal, match=r"sh -c failed with status 3: two \| three \| four"):
        run(["sh", "-c", "for i in one two three four; do echo $i >&2; done; exit 3"], timeout=10)


def test_a_killed_child_is_told_as_such() -> None:
    with pytest.raises(Internal, match="signal 9"):
        run(["sh", "-c", "kill -9 $$"], timeout=10)


def test_a_child_ends_with_its_deadline(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"sh did not end within 0\.5 s|within 0 s|within 1 s"):
        run(["sh", "-c", f"echo $$ >{tmp_path}/pid; exec sleep 60"], timeout=0.5)
    assert time.monotonic() - started < 50
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_full_disk_is_recognised() -> None:
    with pytest.raises(OSError, match="No space") as caught:
        run(["sh", "-c", "echo 'tar: x: Cannot write: No space left on device' >&2; exit 2"], timeout=10)
    assert caught.value.errno == errno.ENOSPC
