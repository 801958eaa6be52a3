"""Locks between processes: an exclusive flock(2) on a file, which the kernel drops with the process that holds it.

The shim's short-lived `start` and `delete` import this file, so it imports next to nothing.
"""

from __future__ import annotations

import fcntl
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import PathLike

#: Seconds between two attempts: soon after the first, rarely for who waits for long.
_FIRST_POLL_S, _MAX_POLL_S, _GROWTH = 0.002, 0.1, 1.2
#: Bytes of a command line that are told.
_MAX_WORDS = 200


def acquire(path: str | PathLike[str], *, timeout: float = 0.0, flags: int = os.O_CREAT) -> int | None:
    """Lock a file, which is made (mode 0600) if it is not there.

    Args:
        path: no symbolic link in its last component.
        timeout: seconds to wait for whoever holds it; without any, who has an event loop tries again by itself.
        flags: of open(2), besides those for reading and writing.

    Returns:
        A descriptor, close-on-exec: the lock is held until that and its copies are closed. None if another process
        holds the lock until the timeout.

    Raises:
        OSError: the file cannot be opened or made.
    """
    deadline = time.monotonic() + timeout
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
        try:
            if not _lock(fd, deadline):
                os.close(fd)
                return None
            # Whoever had the lock before may just have removed the file: this lock would then exclude nobody.
            if _is_at(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def holder(path: str | PathLike[str]) -> str:
    """Who has locked a file, in words: "process 4711 (kata kernel build)".

    The kernel's own list is asked, which another process may be in by the time that it is read. Where it does not say,
    as outside of this process id namespace, it is "another process". Reference: proc_locks(5).
    """
    try:
        status = os.stat(path)
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        with open("/proc/locks") as locks:
            found = (line.split() for line in locks if " FLOCK " in line and f" {place} " in line)
            pid = next(int(fields[4]) for fields in found if fields[1] != "->")
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(_MAX_WORDS).decode(errors="replace").strip("\0").split("\0")
    except (OSError, ValueError, IndexError, StopIteration):
        return "another process"
    if os.path.basename(words[0]).startswith("python"):
        words = words[1:]
    command = " ".join([os.path.basename(words[0]), *words[1:]]) if words else "python"
    return f"process {pid} ({''.join(one if one.isprintable() else '?' for one in command)})"


def _lock(fd: int, deadline: float) -> bool:
    pause = _FIRST_POLL_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pass
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(pause * _GROWTH, _MAX_POLL_S)


def _is_at(fd: int, path: str | PathLike[str]) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False
