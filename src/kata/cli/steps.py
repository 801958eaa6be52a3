"""The steps of something long, as they happen: on a terminal the current one, elsewhere a line each with its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """Yields what is to be called with each next step, a short phrase; it is shown on standard error."""
    from rich.console import Console

    console = Console(stderr=True)
    started = time.monotonic()
    if console.is_terminal:
        with console.status("starting") as status:
            yield lambda step: status.update(f"{step} …")
    else:
        yield lambda step: console.print(f"{time.monotonic() - started:6.1f} s  {step}", markup=False, soft_wrap=True)
