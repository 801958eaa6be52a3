"""What the user reads on stderr when something goes wrong, and the exit code that goes with it: the one place for both.

    kata: there is no guest image in /var/lib/kata/images
    hint: run: kata image build

Messages may carry words of the guest, which is hostile: nothing that could steer a terminal gets through.
"""

from __future__ import annotations

import sys
import traceback
from enum import IntEnum

from kata.errors import Code, KataError


class ExitCode(IntEnum):
    """Exit codes of `kata`. From CONTAINER_FAILED on they are those of `kata run`, with Podman's meanings."""

    OK = 0
    FAILED = 1
    USAGE = 2
    RUN_FAILED = 125
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127


def signalled(number: int) -> int:
    """The exit code of something that a signal ended."""
    return 128 + number


def command_exit_code(error: KataError) -> int:
    """The exit code of `kata run` when the guest could not start the command."""
    text = error.message
    if error.code == Code.NOT_FOUND and "executable file not found" in text:
        return ExitCode.NOT_FOUND
    if error.code == Code.PERMISSION_DENIED and "exec: permission denied" in text:
        return ExitCode.NOT_EXECUTABLE
    return ExitCode.RUN_FAILED


def report(error: BaseException, *, debug: bool = False) -> None:
    """Tell about an error: one line, and a hint if there is one. With `debug`, the trace comes first."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, KataError):
        say(error.message, hint=error.hint)
    elif isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        say(f"{where}{(error.strerror or str(error)).lower()}", hint=None if debug else _TRACE_HINT)
    else:
        say(f"unexpected error: {type(error).__name__}: {error}", hint=None if debug else _TRACE_HINT)


_TRACE_HINT = "run with --debug for the trace; `kata env` prints what a bug report needs"


def say(message: str, *, hint: str | None = None) -> None:
    """A line for the user, on stderr."""
    _print(f"kata: {printable(message)}")
    if hint:
        _print(f"hint: {printable(hint)}")


def warn(message: str) -> None:
    """A line about something that works all the same."""
    say(f"warning: {message}")


def detail(text: str) -> None:
    """What --debug shows, line by line."""
    for line in text.splitlines():
        _print(f"debug: {''.join(map(_visible, line))}")


def _print(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody can be told


def printable(text: str) -> str:
    """The text on one line, with control characters and the like written as escapes."""
    return "".join(map(_visible, " ".join(text.split())))


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
