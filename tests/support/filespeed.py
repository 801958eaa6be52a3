"""How long small files take (see `fileprograms`):

python3 -m support.filespeed DIRECTORY FILES    seconds to create, to find with their sizes, and to read them, as JSON
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence

from .fileprograms import told


def main(directory: str, count: str) -> None:
    names = [f"{directory}/{number % 50}/{number}" for number in range(int(count))]
    for number in range(50):
        os.makedirs(f"{directory}/{number}")
    seconds = {"create": _timed(_create, names), "stat": _timed(_stat, names), "read": _timed(_read, names)}
    told(seconds)


def _timed(work: Callable[[str], None], names: Sequence[str]) -> float:
    begin = time.monotonic()
    for name in names:
        work(name)
    return time.monotonic() - begin


def _create(name: str) -> None:
    with open(name, "w", encoding="ascii") as file:
        file.write(name)


def _stat(name: str) -> None:
    os.stat(name)


def _read(name: str) -> None:
    with open(name, encoding="ascii") as file:
        file.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
