"""A file that a command is given: by its path, or "-" for standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from kata.errors import InvalidArgument


def read(file: Path, limit: int) -> bytes:
    """The content.

    Args:
        file: its path, or "-".
        limit: bytes at most, whole MiB.

    Raises:
        InvalidArgument: it cannot be read, or is larger.
    """
    try:
        if str(file) == "-":
            content = sys.stdin.buffer.read(limit + 1)
        else:
            with file.open("rb") as opened:
                content = opened.read(limit + 1)
    except OSError as error:
        raise InvalidArgument(f"cannot read {file}: {(error.strerror or str(error)).lower()}") from error
    if len(content) > limit:
        raise InvalidArgument(f"{file} is too large; the maximum is {limit >> 20} MiB")
    return content
