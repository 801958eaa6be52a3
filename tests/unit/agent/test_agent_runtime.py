from __future__ import annotations

import os
from pathlib import Path

import pytest

from kata.agent.crun import explain
from kata.agent.reaper import Reaper
from kata.agent.runtime import Crun
from kata.errors import FailedPrecondition, Internal, KataError, NotFound, PermissionDenied


@pytest.mark.parametrize(
    ("message", "kind", "text"),
    [
        (
            "executable file `nope` not found in $PATH: No such file or directory",
            NotFound,
            'exec: "nope": executable file not found in $PATH',
        ),
        (
            "executable file `a\nb ` c` not found in $PATH",
            NotFound,
            'exec: "a\nb ` c": executable file not found in $PATH',
        ),
        (
            "the path `/etc/passwd` exists but it is not executable: Operation not permitted",
            PermissionDenied,
            "permission denied",
        ),
        ("exec `/bin/x`: Permission denied", PermissionDenied, "permission denied"),
        ("the container `x` is not running", FailedPrecondition, "crun exec: the container `x` is not running"),
        ("cannot fork: Cannot allocate memory", Internal, "crun exec failed with status 1: cannot fork"),
    ],
)
def test_what_crun_says(message: str, kind: type[KataError], text: str) -> None:
    error = explain("exec", 1, f"a warning before it\n{message}\n")
    assert type(error) is kind
    assert text in str(error)


@pytest.mark.parametrize("log", ["", "\n", "words\n", "executable file\n"])
def test_what_crun_does_not_say(log: str) -> None:
    error = explain("create", 137, log)
    assert type(error) is Internal
    assert "crun create failed with status 137" in str(error)


async def test_start_lets_the_waiting_process_go_once(tmp_path: Path) -> None:
    crun = Crun(Reaper(), str(tmp_path), "")
    gate = tmp_path / "c1" / "exec.fifo"
    gate.parent.mkdir()
    os.mkfifo(gate)
    waiting = os.open(gate, os.O_RDONLY | os.O_NONBLOCK)
    try:
        await crun.start("c1", hooks=False)
        assert os.read(waiting, 10) == b"\0"
    finally:
        os.close(waiting)
    with pytest.raises(FailedPrecondition, match="c1 is not waiting to be started"):
        await crun.start("c1", hooks=False)


async def test_start_does_not_wait_for_a_dead_process(tmp_path: Path) -> None:
    gate = tmp_path / "c1" / "exec.fifo"
    gate.parent.mkdir()
    os.mkfifo(gate)
    with pytest.raises(FailedPrecondition, match="c1 is not waiting to be started"):
        await Crun(Reaper(), str(tmp_path), "").start("c1", hooks=False)
