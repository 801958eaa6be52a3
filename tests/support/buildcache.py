"""A cache of `kata image build` for a test of its own, with what the usual one has."""

from __future__ import annotations

import shutil
from pathlib import Path

from kata.osbuilder.build import DEFAULT_CACHE


def seeded_cache(directory: Path, *, base: bool = False) -> Path:
    """Make a cache with lists, packages and patched module of the usual one, so that little is downloaded.

    Args:
        directory: the cache.
        base: with its intermediates as well.

    Returns:
        `directory`.
    """
    for name in ("apt/lists", "debs", "modules", *(("base",) if base else ())):
        if (DEFAULT_CACHE / name).is_dir():
            shutil.copytree(DEFAULT_CACHE / name, directory / name)
    directory.mkdir(exist_ok=True)
    return directory
