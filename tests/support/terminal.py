"""Runs a program on a terminal of its own, and types what a user would."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence

#: A terminal that can move its cursor, whatever the tests themselves are run on.
TERM = "xterm-256color"


def on_a_terminal(
    argv: Sequence[str],
    *script: tuple[bytes, bytes | signal.Signals],
    environment: Mapping[str, str] | None = None,
    size: tuple[int, int] = (24, 80),
    timeout: float = 60.0,
) -> tuple[int, bytes]:
    """Run a command on a pseudo-terminal to its end.

    Args:
        argv: the command.
        script: (what to wait for in the output since the last step, what to type then, or the signal for the
            programs in the foreground).
        environment: the command's; None for the caller's, with TERM.
        size: rows and columns.
        timeout: seconds for everything; the command is killed then.

    Returns:
        Its exit status and its output, as the terminal received it (lines end in CR LF).

    Raises:
        TimeoutError: the command did not end, or a step was not reached.
    """
    main, terminal = os.openpty()
    fcntl.ioctl(main, termios.TIOCSWINSZ, struct.pack("4H", *size, 0, 0))
    try:
        process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *argv],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment or {**os.environ, "TERM": TERM},
        )
    finally:
        os.close(terminal)
    said = b""
    seen = 0
    steps = list(script)
    deadline = time.monotonic() + timeout
    try:
        while True:
            if steps and steps[0][0] in said[seen:]:
                expected, answer = steps.pop(0)
                seen += said[seen:].index(expected) + len(expected)
                if isinstance(answer, signal.Signals):
                    os.killpg(os.tcgetpgrp(main), answer)
                else:
                    os.write(main, answer)
            if not select.select([main], [], [], max(0.0, deadline - time.monotonic()))[0]:
                step = f"waiting for {steps[0][0]!r}" if steps else "waiting for its end"
                raise TimeoutError(f"{argv[0]}: {step} for {timeout:.0f} s; its output ends with {said[-500:]!r}")
            try:
                piece = os.read(main, 65536)
            except OSError:  # EIO: no process has the terminal open any more
                break
            if not piece:
                break
            said += piece
        return process.wait(max(1.0, deadline - time.monotonic())), said
    finally:
        process.kill()
        process.wait()
        os.close(main)
