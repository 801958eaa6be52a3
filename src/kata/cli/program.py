"""What all programs of the project have in common around their commands: --version, streams, errors and exit codes."""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
from dataclasses import dataclass
from typing import Any

import typer

from kata.cli.render import ExitCode, report, say, signalled
from kata.errors import KataError, ResourceExhausted
from kata.version import VERSION

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

# Not every version of typer exports UsageError, but all export its subclass.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]


@dataclass
class Invocation:
    """What one command line says about all of it: typer's `context.obj`, which the program's callback fills in.

    Attributes:
        debug: whether errors are printed with a traceback.
        log: where errors are logged as well; None: nowhere.
    """

    debug: bool = False
    log: logging.Logger | None = None

    def exit_code(self, error: Exception) -> int:
        """Return the exit code of a program that an error has ended."""
        return ExitCode.USAGE if isinstance(error, _USAGE_ERROR) else ExitCode.FAILED


def version_option(program: str, *names: str) -> Any:
    """Return the option that prints the version of a program and exits: `--version`, and other names for it."""

    def show(wanted: bool) -> None:
        if wanted:
            print(f"{program} {VERSION}")
            raise typer.Exit

    return typer.Option(*names, "--version", callback=show, is_eager=True, help="Show the version and exit.")


def run_command_line(
    app: typer.Typer,
    name: str,
    arguments: list[str],
    invocation: Invocation,
    *,
    option: str | None = "--debug",
    said_by: str = "",
) -> int:
    """Run one command line and return its exit code; errors have been printed on stderr.

    Args:
        app: the program.
        name: of the program, as in its help.
        arguments: without the program's name.
        invocation: becomes `context.obj`.
        option: how to get an error's traceback, as for `report`.
        said_by: what error messages begin with, if it is not the name.
    """
    said_by = said_by or name
    try:
        code = app(args=arguments, prog_name=name, standalone_mode=False, obj=invocation)
        sys.stdout.flush()
        return int(code or 0)
    except _USAGE_ERROR as error:
        _report_usage(error, said_by)
        return invocation.exit_code(error)
    except KeyboardInterrupt:
        return signalled(2)
    except SystemExit as end:
        # typer makes one of a completed command line, whose status shells go by, and of a pipe that nobody reads.
        return int(end.code or 0) if _completion_variable(name) in os.environ else _leave_broken_pipe()
    except BrokenPipeError:
        return _leave_broken_pipe()
    except Exception as error:
        report(_of_output(error), debug=invocation.debug, program=said_by, option=option)
        if invocation.log:
            invocation.log.error("%s", error, exc_info=None if isinstance(error, KataError) else error)
        return invocation.exit_code(error)


def occupy_standard_streams() -> None:
    """Open /dev/null in the place of standard streams that are closed."""
    # A descriptor opened later must never become standard input, output or error where those are closed.
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w"))  # noqa: SIM115 - for as long as the process lives


def log_to_stderr(program: str, level: int) -> None:
    """Log to standard error from now on, as a service does: in the form of all of the project's logs.

    Args:
        program: the `name` of each line.
        level: of `logging`; what is below it is left out.
    """
    from kata.shim.log import LogfmtFormatter

    handler = logging.StreamHandler()
    handler.setFormatter(LogfmtFormatter("", program))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)


def _report_usage(error: Any, program: str) -> None:
    """Print a command line error in the form of all others. Without arguments the message is the help."""
    where = error.ctx.command_path if error.ctx is not None else program
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        return
    # Newer versions of typer let pydantic check values, whose word for it means nothing to a user.
    message = error.format_message().rstrip(".").replace("Value error, ", "")
    say(message[:1].lower() + message[1:], hint=f"{where} --help", program=program)


def _completion_variable(name: str) -> str:
    """By which typer's scripts ask a program for completions."""
    return f"_{name}_COMPLETE".replace("-", "_").upper()


def _of_output(error: Exception) -> Exception:
    """The error, or a better one if standard output cannot be written: an error of it does not name it."""
    if not isinstance(error, OSError) or error.filename is not None or error.errno not in _CANNOT_WRITE:
        return error
    mode = os.fstat(1).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or (os.isatty(1) and error.errno != errno.EIO):
        return error  # these do not fill up: it was a copy of files onto a full disk, for example
    # What Python still has of the output would fail again when it exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    what = (error.strerror or str(error)).lower()
    return ResourceExhausted(f"cannot write standard output: {what}", hint="write elsewhere, or make room")


def _leave_broken_pipe() -> int:
    """Return the exit code for output whose reader has exited."""
    # The interpreter would report that again when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return signalled(13)
