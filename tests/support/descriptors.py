"""The open files of a running process, for tests that look while it opens and closes them."""

from __future__ import annotations

import os
from pathlib import Path


def open_files(pid: int | str = "self") -> dict[str, str]:
    """Return the descriptors of a process and what each refers to (proc_pid_fd(5)).

    One that is closed in the meantime is left out.
    """
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[entry.name] = os.readlink(entry)
        except FileNotFoundError:
            continue
    return found
