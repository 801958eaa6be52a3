"""What all programs do around their commands."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import typer

from kata.cli import osbuilder
from kata.cli.main import invoke
from kata.cli.program import Invocation, run_command_line
from kata.errors import NotFound
from kata.version import VERSION


def ended_by(error: Exception, *, debug: bool = False, option: str | None = "--loud") -> int:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise error

    return run_command_line(app, "kata-x", [], Invocation(debug=debug), option=option)


@contextmanager
def piped_output() -> Iterator[None]:
    """Standard output is a pipe, as in a pod or before `less`."""
    kept = os.dup(1)
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        for fd in (kept, reader, writer):
            os.close(fd)


def test_an_error_is_a_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended_by(NotFound("no x", hint="make one")) == 1
    assert capsys.readouterr().err == "kata-x: no x\nhint: make one\n"


def test_how_to_get_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended_by(KeyError("x")) == 1
    said = capsys.readouterr().err
    assert said.startswith("kata-x: unexpected error: KeyError: 'x'\nhint: run with --loud for the traceback")
    assert ended_by(NotFound("no x"), debug=True) == 1
    assert capsys.readouterr().err.startswith("Traceback")


def test_a_service_without_such_an_option_shows_what_nobody_has_foreseen(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended_by(KeyError("x"), option=None) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.endswith("\nkata-x: unexpected error: KeyError: 'x'\n")
    assert ended_by(OSError(errno.ENOENT, "No such file or directory", "/x"), option=None) == 1
    assert capsys.readouterr().err == "kata-x: /x: no such file or directory\n"


def test_a_full_disk_is_not_that_of_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with piped_output():
        assert ended_by(OSError(errno.ENOSPC, "No space left on device"), option=None) == 1
    assert capsys.readouterr().err == "kata-x: no space left on device\n"


def test_osbuilder_has_the_options_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["--version"], osbuilder.app, osbuilder.PROGRAM) == 0
    assert capsys.readouterr().out == f"kata-osbuilder {VERSION}\n"
    wrong = ["rootfs", "fedora"]
    assert invoke(["--debug", *wrong], osbuilder.app, osbuilder.PROGRAM) == 1
    assert capsys.readouterr().err.startswith("Traceback")
