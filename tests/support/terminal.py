"""Runs a program on a terminal of its own and plays the person in front of it."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence


def on_a_terminal(
    argv: Sequence[str],
    *script: tuple[bytes, bytes],
    environment: Mapping[str, str] | None = None,
    size: tuple[int, int] = (24, 80),
    timeout: float = 60.0,
) -> tuple[int, bytes]:
    """Run a command on a pseudo-terminal to its end.

    Args:
        script: (what to wait for in the output since the last step, what to type then).
        size: rows and columns.
        timeout: seconds for the whole; the command is killed then.

    Returns:
        Its exit status and all of its output, as the terminal got it (lines end in CR LF).

    Raises:
        TimeoutError: names the step that was not reached and what was said instead.
    """
    main, terminal = os.openpty()
    fcntl.ioctl(main, termios.TIOCSWINSZ, struct.pack("4H", *size, 0, 0))
    try:
        process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *argv],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment,
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
                os.write(main, answer)
            if not select.select([main], [], [], max(0.0, deadline - time.monotonic()))[0]:
                step = f"waiting for {steps[0][0]!r}" if steps else "waiting for its end"
                raise TimeoutError(f"{argv[0]}: {step} for {timeout:.0f} s, it said {said[-500:]!r}")
            try:
                piece = os.read(main, 65536)
            except OSError:  # EIO: nobody has the terminal open any more
                break
            if not piece:
                break
            said += piece
        return process.wait(max(1.0, deadline - time.monotonic())), said
    finally:
        process.kill()
        process.wait()
        os.close(main)
