"""The user's terminal while a container has it: raw, and afterwards as it was."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """Pass every key on as it is, including Ctrl-C, for as long as the context lasts. Nothing, if `fd` is no terminal.

    TCSANOW throughout: to wait for output to drain would be to wait for a user who pressed Ctrl-S.
    """
    try:
        saved = termios.tcgetattr(fd)
    except termios.error:
        yield
        return
    try:
        tty.setraw(fd, termios.TCSANOW)
        yield
    finally:
        try:
            termios.tcsetattr(fd, termios.TCSANOW, saved)
        except termios.error:
            pass  # hung up


def size(*fds: int) -> os.terminal_size | None:
    """The size of the first of the descriptors that is a terminal and knows it."""
    for fd in fds:
        try:
            found = os.get_terminal_size(fd)
        except OSError:
            continue
        if found.lines and found.columns:
            return found
    return None
