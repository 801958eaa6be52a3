"""swapon(2)."""

from __future__ import annotations

import os

from kata.linux.libc import LIBC, check


def swapon(path: str) -> None:
    """Enable swapping to a device that is formatted for it (mkswap(8)). Raises OSError."""
    check(LIBC.swapon(os.fsencode(path), 0), "swapon", path)
