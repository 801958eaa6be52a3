"""What a running process has open, for tests that look while it opens and closes."""

from __future__ import annotations

import os
from pathlib import Path


def open_files(pid: int | str = "self") -> dict[str, str]:
    """The descriptors of a process and what each refers to, as /proc has it (proc_pid_fd(5)).

    One that is closed between the listing and the look is left out.
    """
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[entry.name] = os.readlink(entry)
        except FileNotFoundError:
            continue
    return found
