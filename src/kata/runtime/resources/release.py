"""Remove a sandbox's host cgroup. The shim's `delete` uses this: it imports little."""

from __future__ import annotations

import errno
import os
import time

#: Seconds for processes that were killed to be out of their cgroup.
_EMPTY_TIMEOUT_S = 2.0
_POLL_S = 0.005


def remove_cgroup(directory: str) -> None:
    """Remove a cgroup's directory, unless others have made cgroups in it meanwhile: then it is theirs. Idempotent.

    Raises:
        OSError: EBUSY: processes are still in it; else as rmdir(2).
    """
    deadline = time.monotonic() + _EMPTY_TIMEOUT_S
    while True:
        try:
            os.rmdir(directory)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        with os.scandir(directory) as entries:
            if any(entry.is_dir(follow_symlinks=False) for entry in entries):
                return
        time.sleep(_POLL_S)
