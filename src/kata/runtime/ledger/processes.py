"""The processes of a sandbox: found by a variable in their environment, and killed through a handle.

Numbers in a file would not do: they are reused, and a crash can come between fork and write.

References: proc_pid_environ(5), proc_pid_stat(5), pidfd_open(2), pidfd_send_signal(2); in the kernel, do_exit() of
kernel/exit.c and load_elf_binary() of fs/binfmt_elf.c.
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
#: For processes that were ending already and may be the sandbox's: containerd gives `delete` five seconds in all.
_EXITING_TIMEOUT_S = 2.0
#: For a process in execve(2), whose new environment is not known yet.
_EXEC_TIMEOUT_S = 2.0
_EXEC_POLL_S = 0.0005
#: Flags of a process (linux/sched.h).
_PF_EXITING, _PF_KTHREAD = 0x4, 0x200000
#: Indices among the fields after the name, which proc_pid_stat(5) counts from 3.
_FLAGS, _ENV_START, _ENV_END = 9 - 3, 50 - 3, 51 - 3


def processes_of(directory: str) -> Iterator[int]:
    """The ids of the processes that carry the sandbox's MARKER, this one and those that are exiting excepted."""
    mark = f"{MARKER}={directory}".encode()
    return (pid for pid in _others() if mark in (_environment(pid) or ()))


def kill_processes(directory: str) -> None:
    """Kill the processes that carry the sandbox's MARKER, this one excepted, and see that their files are closed.

    A process that exits loses its memory first, and the mark with it, and its files only then; freeing a guest's memory
    takes a while. The VMM of a shim that was killed may be at that point, and nothing tells any more whose it is: so
    whatever is exiting now is waited for.

    Raises:
        OSError: EBUSY: some survive SIGKILL.
    """
    mark = f"{MARKER}={directory}".encode()
    begin = time.monotonic()
    while True:
        killed: dict[int, int] = {}
        exiting: dict[int, int] = {}
        try:
            for pid in _others():
                try:
                    # First, since the number may be given to somebody else: what is seen then is this one, or it ended.
                    pidfd = os.pidfd_open(pid)
                except OSError:
                    continue
                environment = _environment(pid)
                if environment is None:
                    exiting[pid] = pidfd
                elif mark in environment:
                    killed[pid] = pidfd
                    _kill(pidfd)
                else:
                    os.close(pidfd)
            _await_end(exiting, begin + _EXITING_TIMEOUT_S)
            if survivors := _await_end(killed, begin + _KILL_TIMEOUT_S):
                raise OSError(errno.EBUSY, f"processes {survivors} survive SIGKILL")
        finally:
            for pidfd in (*killed.values(), *exiting.values()):
                os.close(pidfd)
        if not killed:
            return
        # Once more: what was killed may have forked just before.


def _others() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid())


def _environment(pid: int) -> list[bytes] | None:
    """A process's environment; None for one that has lost it by exiting.

    In execve(2) a process has its new memory some time before it has its new environment there: that is waited for.

    Returns:
        An empty list also for a kernel thread, for a process that is not there or may not be looked at, and for one
        that takes too long.
    """
    deadline = time.monotonic() + _EXEC_TIMEOUT_S
    while True:
        try:
            if content := _read(f"/proc/{pid}/environ"):
                return content.split(b"\0")
        except PermissionError:
            return []
        except OSError:
            pass  # it has no memory any more, as some kernels say
        try:
            # After the name, which may hold anything: state, parent, group, session, terminal, its group, flags.
            fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        except OSError:
            return []
        flags, start, end = (int(fields[index]) for index in (_FLAGS, _ENV_START, _ENV_END))
        if flags & _PF_KTHREAD:
            return []
        if flags & _PF_EXITING:
            return None
        if start == end != 0 or time.monotonic() > deadline:
            return []
        time.sleep(_EXEC_POLL_S)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _kill(pidfd: int) -> None:
    try:
        _signal.pidfd_send_signal(pidfd, _signal.SIGKILL)
    except ProcessLookupError:
        pass


def _await_end(processes: dict[int, int], deadline: float) -> list[int]:
    """Wait until the last thread of each process has ended.

    Args:
        processes: process id → pidfd.
        deadline: `time.monotonic()` at which the wait ends.

    Returns:
        Ids of those that have not ended, sorted.
    """
    # Not among the imports: most sandboxes have no process left to wait for.
    import select

    waiting = {pidfd: pid for pid, pidfd in processes.items()}
    poller = select.poll()
    for pidfd in waiting:
        poller.register(pidfd, select.POLLIN)
    while waiting and (ended := poller.poll(max(0.0, deadline - time.monotonic()) * 1000)):
        for pidfd, _ in ended:
            poller.unregister(pidfd)
            del waiting[pidfd]
    return sorted(waiting.values())
