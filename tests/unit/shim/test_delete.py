"""`delete`: whatever state a daemon left, an answer for containerd and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from kata.errors import InvalidArgument
from kata.protocols.containerd import task_v2_pb2
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import FILE
from kata.shim import delete as module
from kata.shim.arguments import parse

#: Sits on a ledger's lock as a hung daemon would.
HOLDER = """
import sys, time
from kata.runtime.ledger.journal import Ledger
ledger = Ledger(sys.argv[1])
ledger.hold("file", sys.argv[2])
print("held", flush=True)
time.sleep(60)
"""


@given(st.integers(0, 255), st.integers(1, 2**62))
def test_response_agrees_with_the_real_library(status: int, at_ns: int) -> None:
    answer = task_v2_pb2.DeleteResponse.FromString(module.delete_response(status, at_ns))
    assert answer.exit_status == status
    assert answer.exited_at.ToNanoseconds() == at_ns


def delete(container_id: str = "box") -> None:
    module.delete(parse(["-namespace", "n", "-id", container_id, "delete"]))


def answer(capfdbinary: pytest.CaptureFixture[bytes]) -> Message:
    return task_v2_pb2.DeleteResponse.FromString(capfdbinary.readouterr().out)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "STATE_ROOT", str(tmp_path))
    return tmp_path


def test_after_a_clean_end_there_is_only_the_answer(state: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    before = time.time_ns()
    delete()
    response = answer(capfdbinary)
    assert response.exit_status == 137  # type: ignore[attr-defined]
    assert before <= response.exited_at.ToNanoseconds() <= time.time_ns()  # type: ignore[attr-defined]
    assert not list(state.iterdir()), "asking leaves no directory behind"


def test_after_a_crash_it_gives_back_what_the_ledger_lists(
    state: Path, tmp_path_factory: pytest.TempPathFactory, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    file = tmp_path_factory.mktemp("elsewhere") / "socket"
    file.touch()
    ledger = Ledger(str(state / "box@n"))
    ledger.hold(FILE, str(file))
    ledger.close()
    delete()
    assert answer(capfdbinary).exit_status == 137  # type: ignore[attr-defined]
    assert not file.exists()
    assert not (state / "box@n").exists()


def test_a_hung_daemon_is_killed(
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    monkeypatch.setattr(module, "_DAEMON_EXIT_TIMEOUT_S", 0.2)
    file = tmp_path_factory.mktemp("elsewhere") / "socket"
    file.touch()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(state / "box@n"), str(file)], stdout=subprocess.PIPE
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            delete()
            assert holder.wait(5) == -9
        finally:
            holder.kill()
    assert not file.exists()
    assert not (state / "box@n").exists()
    assert answer(capfdbinary).exit_status == 137  # type: ignore[attr-defined]


def test_what_cannot_be_given_back_is_told_and_stays_on_the_ledger(
    state: Path, tmp_path_factory: pytest.TempPathFactory, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    directory = tmp_path_factory.mktemp("not-a-file")
    ledger = Ledger(str(state / "box@n"))
    ledger.hold(FILE, str(directory))
    ledger.close()
    delete()
    captured = capfdbinary.readouterr()
    assert captured.err.startswith(b"cannot release file " + os.fsencode(directory))
    assert task_v2_pb2.DeleteResponse.FromString(captured.out).exit_status == 137
    assert (state / "box@n/ledger").exists()


@pytest.mark.parametrize("bad", ["", "..", "a/b", "-x", "x" * 77])
def test_an_id_that_is_none(state: Path, bad: str) -> None:
    with pytest.raises(InvalidArgument):
        delete(bad)
