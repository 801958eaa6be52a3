"""The shim's `delete`: release what is left, when containerd has lost the daemon and at the end of every container.

containerd waits for it for five seconds. After a clean shutdown there is nothing to do; after a crash it releases
what the ledger lists. A container in a pod that lives on has no ledger of its own.
"""

from __future__ import annotations

# Not `signal`: its enums would double what this file costs to import.
import _signal  # type: ignore[import-not-found]
import os
import time

from kata.runtime.ledger.journal import STATE_ROOT, Ledger, Locked
from kata.runtime.ledger.names import state_name
from kata.ttrpc.wire import varint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata.shim.arguments import Arguments

#: The exit status that containerd reports for a task whose shim is gone: killed.
KILLED = 137

#: Seconds for a daemon that may just be exiting, before it counts as hung.
_DAEMON_EXIT_TIMEOUT_S = 2.0
_MAX_PID_FILE = 20


def delete(arguments: Arguments) -> None:
    """Do the `delete` action and print the serialised DeleteResponse.

    Raises:
        InvalidArgument: id or namespace is none.
        OSError: the state directory cannot be read.
    """
    directory = f"{STATE_ROOT}/{state_name(arguments.id, arguments.namespace)}"
    if os.path.isdir(directory):
        try:
            problems = _take_over(directory).release()
        except Locked:
            problems = [f"{directory}: another process has its ledger locked"]
        for problem in problems:
            os.write(2, f"cannot release {problem}\n".encode())
    os.write(1, delete_response(KILLED, time.time_ns()))


def _take_over(directory: str) -> Ledger:
    try:
        return Ledger(directory, wait_s=_DAEMON_EXIT_TIMEOUT_S)
    except Locked:
        _kill_owner(directory)
        return Ledger(directory, wait_s=_DAEMON_EXIT_TIMEOUT_S)


def _kill_owner(directory: str) -> None:
    """Kill what has the ledger open and is the sandbox's: the daemon, and what it has forked.

    Not whoever has it open: `kata gc` may just be releasing it.
    """
    # Not among the imports: few daemons hang.
    from kata.runtime.ledger.processes import processes_of

    ledger = os.stat(os.path.join(directory, "ledger"))
    for pid in {*_daemon(), *processes_of(directory)}:
        try:
            # First, since the number may be given to somebody else: what is looked at then is this one, or it ended.
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            if _has_open(pid, ledger):
                _signal.pidfd_send_signal(pidfd, _signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)


def _daemon() -> list[int]:
    """The daemon's process id, as `start` has left it in the bundle; by itself it does not tell much."""
    try:
        with open("shim.pid", "rb") as file:
            return [int(file.read(_MAX_PID_FILE))]
    except (OSError, ValueError):
        return []


def _has_open(pid: int, file: os.stat_result) -> bool:
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            found = os.stat(f"/proc/{pid}/fd/{descriptor}")
        except OSError:
            continue
        if (found.st_dev, found.st_ino) == (file.st_dev, file.st_ino):
            return True
    return False


def delete_response(status: int, at_ns: int) -> bytes:
    """`containerd.task.v2.DeleteResponse` {2 exit_status, 3 exited_at {1 seconds, 2 nanos}}, encoded by hand."""
    seconds, nanos = divmod(at_ns, 1_000_000_000)
    timestamp = b"\x08" + varint(seconds) + b"\x10" + varint(nanos)
    return b"\x10" + varint(status) + b"\x1a" + varint(len(timestamp)) + timestamp
