"""What the programs share that look at files in a container: `filecheck`, `fileissues`, `filecases`, `filehost`.

They need only Python's standard library, and run in an image that has this directory as /support:

    python3 -m support.filecases DIRECTORY [""]         one program
    python3 -m support.filecases DIRECTORY OTHER        two, which have one directory at two places
    python3 -m support.filecases --serve OTHER :PORT    the second one, in a container of its own,
    python3 -m support.filecases DIRECTORY :PORT        and the first one, in the same network

"-" in place of ":PORT" is standard input and output of both; the first one prints what it found to standard error then.
`fileways` runs them.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any

#: Nothing that works takes as long, on a busy host and under emulation: a step, a call of the second program. Where
#: much does not work, as between two kernels, less is waited.
STEP_TIMEOUT_S = int(os.environ.get("STEP_TIMEOUT_S", "20"))
CALL_TIMEOUT_S = 3 * STEP_TIMEOUT_S


def write(name: str, content: bytes = b"content") -> str:
    with open(name, "wb") as file:
        file.write(content)
    return name


def read(name: str) -> bytes:
    with open(name, "rb") as file:
        return file.read()


def raises(number: int, function: Callable[[], object]) -> bool:
    try:
        function()
    except OSError as error:
        return error.errno == number
    return False


def stuck(*_: object) -> None:
    """A handler of SIGALRM: what takes as long is a failure, and the next one goes on."""
    raise TimeoutError(errno.ETIMEDOUT, "stuck")


class There:
    """The second program: it runs functions, each in the same directory as the caller's, at its place.

    Args:
        answers: what comes from the second program, which is in `serve`.
        calls: what goes to it.
        directory: where it has what the first one has, if that can be reached from here; else "".
    """

    def __init__(self, answers: IO[str], calls: IO[str], directory: str = "") -> None:
        self._answers, self._calls = answers, calls
        self._number = 0
        self.directory = directory

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function there and return its result; an OSError is raised here."""
        self.begin(function, *arguments)
        return self.end()

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have a function run there; `end` waits for it."""
        self._number += 1
        self._calls.write(json.dumps([self._number, function.__name__, *arguments]) + "\n")
        self._calls.flush()

    def end(self) -> Any:
        """The result of what was begun last; others may have been given up."""
        while True:
            number, result, failed = json.loads(self._answers.readline())
            if number == self._number:
                break
        if failed:
            raise OSError(failed, f"there: {os.strerror(failed)}")
        return result

    def waits(self, seconds: float = 1.0) -> bool:
        """Whether what was begun is not done within some time."""
        return not select.select([self._answers], [], [], seconds)[0]


Functions = Mapping[str, Callable[..., Any]]


def serve(calls: IO[str], answers: IO[str], directory: str, functions: Functions) -> None:
    """Be the second program until the first one ends; `enter` begins in the directory."""
    signal.signal(signal.SIGALRM, stuck)
    for line in calls:
        number, name, *arguments = json.loads(line)
        try:
            signal.alarm(CALL_TIMEOUT_S)
            if name == "enter":
                os.chdir(directory)
            answer = [number, (functions.get(name) or getattr(os, name))(*arguments), 0]
        except OSError as error:
            answer = [number, None, error.errno or errno.EIO]
        finally:
            signal.alarm(0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def serve_at(place: str, directory: str, functions: Functions) -> None:
    """Be the second program: on standard input and output ("-"), or at a ":PORT", of which it says when it is open."""
    if place == "-":
        serve(sys.stdin, sys.stdout, directory, functions)
        return
    with socket.create_server(("127.0.0.1", int(place[1:]))) as server:
        print("ready", flush=True)  # noqa: T201
        with server.accept()[0] as connection:
            serve(*_lines(connection), directory, functions)


def second(other: str, functions: Functions) -> There:
    """Find the second program at "-" or a ":PORT", or begin it in a child process that has another directory."""
    if other == "-":
        return There(sys.stdin, sys.stdout)
    if other.startswith(":"):
        return There(*_lines(socket.create_connection(("127.0.0.1", int(other[1:])))))
    ours, end = socket.socketpair()
    if not os.fork():
        ours.close()
        serve(*_lines(end), other, functions)
        os._exit(0)
    end.close()
    return There(*_lines(ours), other)


def _lines(connection: socket.socket) -> tuple[IO[str], IO[str]]:
    return connection.makefile("r"), connection.makefile("w")


def told(found: object, other: str = "") -> None:
    """Print what was found."""
    out = sys.stderr if other == "-" else sys.stdout
    out.write(json.dumps(found) + "\n")
