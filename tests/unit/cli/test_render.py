from __future__ import annotations

import errno
import signal

import pytest

from kata.cli import render
from kata.cli.render import ExitCode
from kata.errors import Internal, NotFound, PermissionDenied


def told(capsys: pytest.CaptureFixture[str], error: BaseException, *, debug: bool = False) -> list[str]:
    render.report(error, debug=debug)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_error_and_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, NotFound("no image x", hint="build it")) == ["kata: no image x", "hint: build it"]
    assert told(capsys, NotFound("no image x")) == ["kata: no image x"]


def test_words_of_the_guest_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, Internal("a\x1b[2J\nb\r\u202ec\0")) == ["kata: a\\x1b[2J b \\u202ec\\x00"]


def test_operating_system_error_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, OSError(errno.ENOSPC, "No space left on device", "/run/kata/x"))
    assert lines[0] == "kata: /run/kata/x: no space left on device"
    assert "--debug" in lines[1]


def test_unexpected_error_is_one_line_and_a_trace_only_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ZeroDivisionError("division\nby zero")
    except ZeroDivisionError as error:
        lines = told(capsys, error)
        assert lines[0] == "kata: unexpected error: ZeroDivisionError: division by zero"
        assert len(lines) == 2
        traced = told(capsys, error, debug=True)
    assert traced[0].startswith("Traceback")
    assert traced[-1] == lines[0]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound('create container x: exec: "y": executable file not found in $PATH'), ExitCode.NOT_FOUND),
        (PermissionDenied("create container x: exec: permission denied (…)"), ExitCode.NOT_EXECUTABLE),
        (NotFound("container x does not exist"), ExitCode.RUN_FAILED),
        (PermissionDenied("policy says no"), ExitCode.RUN_FAILED),
        (Internal("executable file not found"), ExitCode.RUN_FAILED),
    ],
)
def test_exit_codes_of_a_command_that_did_not_start(error: NotFound, code: ExitCode) -> None:
    assert render.command_exit_code(error) == code


def test_exit_code_of_a_signal() -> None:
    assert render.signalled(signal.SIGTERM) == 143
