"""runc, which says what is right: asked again where its engine lost the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

RUNC = "io.containerd.runc.v2"

_TRIES = 3

T = TypeVar("T")


def answer(runtime: str, ask: Callable[[], T], said: Callable[[T], object] = bool) -> T:
    """Return what a runtime answers; only runc is asked again when nothing was said.

    runc's shim and its clients (ctr, containerd's CRI plugin; 1.6 to 2.1) can lose all that a process wrote which ends
    at once: the pipe is closed before it has been opened ("reading from a closed fifo").

    Args:
        runtime: its name for containerd, or its handler ("runc").
        ask: run the process.
        said: whether an answer has the output that is to be there.
    """
    for _ in range(_TRIES - 1 if runtime in (RUNC, "runc") else 0):
        if said(result := ask()):
            return result
    return ask()
