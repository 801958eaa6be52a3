"""A small directory whose content does not say when, or in which order, it was made."""

from __future__ import annotations

import os
from pathlib import Path


def tree(root: Path, names: list[str], timestamp: int) -> Path:
    """Make a directory.

    Args:
        root: the directory.
        names: of its files, "a/0" among them: DIRECTORY/NAME.
        timestamp: of the files.
    """
    root.mkdir(parents=True)
    for name in names:
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name * 100)
        os.utime(path, (timestamp, timestamp))
    (root / "link").symlink_to("a/0")
    (root / "a/0").chmod(0o4755)
    return root
