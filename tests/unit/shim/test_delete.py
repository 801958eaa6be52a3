"""`delete`: whatever state a daemon left, an answer for containerd and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass
class Holder:
    """That process, and what its ledger lists."""

    process: subprocess.Popen[bytes]
    file: Path


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


@pytest.fixture
def holder(state: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Holder]:
    """A process that sits on the ledger; the working directory is the bundle, as containerd has it."""
    monkeypatch.setattr(module, "_DAEMON_EXIT_TIMEOUT_S", 0.2)
    monkeypatch.chdir(tmp_path_factory.mktemp("bundle"))
    file = tmp_path_factory.mktemp("elsewhere") / "socket"
    file.touch()
    command = [sys.executable, "-c", HOLDER, str(state / "box@n"), str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield Holder(process, file)
        finally:
            process.kill()


def test_a_hung_daemon_is_killed(state: Path, holder: Holder, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    Path("shim.pid").write_text(str(holder.process.pid))
    delete()
    assert holder.process.wait(5) == -9
    assert not holder.file.exists()
    assert not (state / "box@n").exists()
    assert answer(capfdbinary).exit_status == 137  # type: ignore[attr-defined]


@pytest.mark.parametrize("written", ["", "nonsense", "ours", "1"])
def test_who_else_has_the_ledger_is_let_alone(
    state: Path, holder: Holder, written: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """It may be `kata gc`; and the number in the bundle may be another process's by now."""
    Path("shim.pid").write_text(str(os.getpid()) if written == "ours" else written)
    delete()
    assert holder.process.poll() is None
    captured = capfdbinary.readouterr()
    assert captured.err == f"cannot release {state}/box@n: another process has its ledger locked\n".encode()
    assert task_v2_pb2.DeleteResponse.FromString(captured.out).exit_status == 137
    assert holder.file.exists()


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
