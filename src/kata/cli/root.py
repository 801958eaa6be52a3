"""Commands that need root say so before anything else."""

from __future__ import annotations

import os

from kata.errors import PermissionDenied


def require_root(command: str) -> None:
    """Check that this process is root's.

    Raises:
        PermissionDenied: it is not.
    """
    if os.geteuid() != 0:
        raise PermissionDenied(f"{command} needs root", hint="run it with sudo")
