"""The user's terminal while a container uses it: raw, and restored afterwards."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

#: Of the local modes in what tcgetattr(3) gives.
_LOCAL = 3


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """Put a terminal into raw mode, in which Ctrl-C is a key like any other. Does nothing if `fd` is not a terminal.

    TCSANOW throughout (termios(3)): waiting until output is drained would hang after a Ctrl-S.
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


@contextmanager
def keyboard(fd: int) -> Iterator[bool]:
    """Have each key of a terminal be read at once, unseen, Ctrl-C and Ctrl-Z too; yields False if `fd` is none."""
    try:
        saved = termios.tcgetattr(fd)
    except termios.error:
        yield False
        return
    try:
        mode = termios.tcgetattr(fd)
        mode[_LOCAL] &= ~(termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN)
        termios.tcsetattr(fd, termios.TCSANOW, mode)
        yield True
    finally:
        try:
            termios.tcsetattr(fd, termios.TCSANOW, saved)
        except termios.error:
            pass  # hung up


def size(*fds: int) -> os.terminal_size | None:
    """Return the size of the first descriptor that is a terminal with a known size; None without one."""
    for fd in fds:
        try:
            found = os.get_terminal_size(fd)
        except OSError:
            continue
        if found.lines and found.columns:
            return found
    return None
