"""What a command writes: standard output, or a file that is whole or not there."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from kata.errors import ResourceExhausted
from kata.linux.atomic_file import Replacement


@contextmanager
def written(file: Path | None) -> Iterator[TextIO]:
    """Open what is written to: standard output, or a file for this user only, which is whole or not there.

    Raises:
        ResourceExhausted: it cannot be written.
    """
    if file is None:
        yield sys.stdout
        return
    # A link stays, and so does what is no file, such as /dev/null.
    path = os.path.realpath(file)
    special = os.path.exists(path) and not os.path.isfile(path)
    try:
        with open(path, "wb") if special else Replacement(path, mode=0o600) as binary:
            out = io.TextIOWrapper(binary, encoding="utf-8", write_through=True)
            yield out
            out.detach()
    except OSError as error:
        raise ResourceExhausted(f"cannot write {file}: {(error.strerror or str(error)).lower()}") from error
