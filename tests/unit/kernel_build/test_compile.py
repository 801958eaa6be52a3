"""With shell scripts in place of make; namespaces and signals are real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kata.errors import DeadlineExceeded, Internal
from kata.kernel_build.compile import compile_
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


def run(tmp_path: Path, script: str, *, timeout: float = 60.0) -> list[int]:
    steps: list[int] = []
    compile_(
        ["sh", "-c", script],
        tmp_path / "log",
        env={"WHO": "kata"},
        timeout=timeout,
        unfinished=tmp_path / "unfinished",
        step=steps.append,
    )
    return steps


def alive(mark: str) -> bool:
    """Whether a process runs whose command line has a mark."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                return True
        except OSError:
            pass
    return False


def test_what_is_made_is_counted_and_logged(tmp_path: Path) -> None:
    assert run(tmp_path, "echo '  CC      a.o'; echo talk; echo '  AR      b.a'; echo $WHO >&2") == [1, 2]
    assert (tmp_path / "log").read_text().splitlines() == ["  CC      a.o", "talk", "  AR      b.a", "kata"]
    assert not (tmp_path / "unfinished").exists()


def test_the_first_error_is_told(tmp_path: Path) -> None:
    script = "echo '  CC      a.o'; echo 'a.c:3:1: error: no such thing'; echo 'make: *** [a.o] Error 1'; exit 2"
    with pytest.raises(Internal, match=r"status 2: a\.c:3:1: error: no such thing") as caught:
        run(tmp_path, script)
    assert caught.value.hint == f"the whole output is in {tmp_path / 'log'}"
    # make has removed what was half made.
    assert not (tmp_path / "unfinished").exists()


def test_a_full_disk_is_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, "echo 'fatal error: error writing to /x: No space left on device'; exit 2")


def test_at_the_deadline_nothing_is_left(tmp_path: Path) -> None:
    mark = f"1{os.getpid()}.5"
    # The compiler, as a child of a child that does not wait for it.
    with pytest.raises(DeadlineExceeded, match="within 1 s"):
        run(tmp_path, f"setsid sh -c 'sleep {mark}; :' & sleep 100", timeout=1)
    eventually(lambda: not alive(mark), "the end of the compiler")
    assert (tmp_path / "unfinished").exists()


def test_with_its_parent_everything_ends(tmp_path: Path) -> None:
    mark = f"2{os.getpid()}.5"
    program = f"""
from pathlib import Path
from kata.kernel_build.compile import compile_
compile_(["sh", "-c", "setsid sh -c 'sleep {mark}; :' & sleep 100"], Path({str(tmp_path / "log")!r}), env={{}},
         timeout=100, unfinished=Path({str(tmp_path / "unfinished")!r}))
"""
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        eventually(lambda: alive(f"sleep\0{mark}"), "the compiler")
        parent.send_signal(signal.SIGKILL)
    eventually(lambda: not alive(mark), "the end of the compiler")
    assert (tmp_path / "unfinished").exists()
