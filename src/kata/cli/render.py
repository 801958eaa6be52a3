"""Messages on stderr, and exit codes.

    kata: there is no guest image in /var/lib/kata/images
    hint: run: kata image build

Messages may contain text of the guest, which is hostile: control characters are escaped.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from enum import IntEnum

from kata.errors import Code, KataError
from kata.logs.visible import visible


class ExitCode(IntEnum):
    """Exit codes of `kata`. From RUN_FAILED on they are those of `kata run`, with Podman's meanings."""

    OK = 0
    FAILED = 1
    USAGE = 2
    RUN_FAILED = 125
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127


def signalled(number: int) -> int:
    """Return the exit code for a process that was killed by a signal."""
    return 128 + number


def command_exit_code(error: KataError) -> int:
    """Return the exit code of `kata run` for an error of the guest on starting the command."""
    text = error.message
    if error.code == Code.NOT_FOUND and "executable file not found" in text:
        return ExitCode.NOT_FOUND
    if error.code == Code.PERMISSION_DENIED and "exec: permission denied" in text:
        return ExitCode.NOT_EXECUTABLE
    return ExitCode.RUN_FAILED


def unwritten(error: OSError) -> int:
    """Return the exit code of a command whose output could not be written; says why, unless its reader has gone."""
    if error.errno == errno.EPIPE:
        return signalled(signal.SIGPIPE)
    say(f"cannot write the command's output: {(error.strerror or '').lower()}")
    return ExitCode.RUN_FAILED


def report(error: BaseException, *, debug: bool = False, program: str = "kata", option: str | None = "--debug") -> None:
    """Print an error: one line, and a hint if there is one.

    Args:
        error: what has happened.
        debug: whether its traceback comes before it.
        program: who says so.
        option: how to get the traceback; None: by no option, and an error that nobody has foreseen has it anyway.
    """
    foreseen = isinstance(error, (KataError, OSError))
    if debug or not (option or foreseen):
        traceback.print_exception(error, file=sys.stderr)
    more = None
    if option and not debug:
        more = f"run with {option} for the traceback; `kata bundle` collects what a bug report needs"
    if isinstance(error, KataError):
        say(error.message, hint=error.hint, program=program)
    elif isinstance(error, OSError):
        if isinstance(error, PermissionError) and os.geteuid() != 0:
            more = "run it with sudo"
        where = f"{error.filename}: " if error.filename else ""
        say(f"{where}{(error.strerror or str(error)).lower()}", hint=more, program=program)
    else:
        say(f"unexpected error: {type(error).__name__}: {error}", hint=more, program=program)


def say(message: str, *, hint: str | None = None, program: str = "kata") -> None:
    """Print a line on stderr, and a hint if there is one."""
    _print(f"{program}: {printable(message)}")
    if hint:
        _print(f"hint: {printable(hint)}")


def warn(message: str) -> None:
    """Print a warning on stderr."""
    say(f"warning: {message}")


def detail(text: str) -> None:
    """Print a text of --debug on stderr, line by line."""
    for line in text.splitlines():
        _print(f"debug: {visible(line)}")


def _print(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        pass  # there is nowhere left to report it


def printable(text: str) -> str:
    """Return the text on one line, with characters that are not printable as escapes."""
    return visible(" ".join(text.split()))
