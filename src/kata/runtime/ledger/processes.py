"""The processes of a sandbox: found by a variable in their environment, and killed through a handle.

Numbers in a file would not do: they are reused, and a crash can come between fork and write.

References: proc_pid_environ(5), pidfd_open(2), pidfd_send_signal(2).
"""

from __future__ import annotations

# Not `signal`: its enums would double what this file costs to import.
import _signal  # type: ignore[import-not-found]
import errno
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Every process that belongs to a sandbox has this variable in its environment; its value is the state directory.
MARKER = "KATA_SANDBOX_DIR"

_KILL_TIMEOUT_S = 5.0
_POLL_S = 0.002


def processes_of(directory: str) -> Iterator[int]:
    """The ids of the processes that carry the sandbox's MARKER, this one excepted."""
    wanted = f"{MARKER}={directory}".encode()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                environment = file.read()
        except OSError:
            continue
        if wanted in environment.split(b"\0"):
            yield int(name)


def kill_processes(directory: str) -> None:
    """Kill the processes that carry the sandbox's MARKER, this one excepted, and see them gone.

    Raises:
        OSError: EBUSY: some survive SIGKILL.
    """
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while pids := list(processes_of(directory)):
        for pid in pids:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                # Looked up once more through a stable handle: the number may have been given to somebody else.
                if pid in processes_of(directory):
                    _signal.pidfd_send_signal(pidfd, _signal.SIGKILL)
            except ProcessLookupError:
                pass
            finally:
                os.close(pidfd)
        if time.monotonic() > deadline:
            raise OSError(errno.EBUSY, f"processes {pids} survive SIGKILL")
        time.sleep(_POLL_S)
