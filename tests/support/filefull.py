"""What programs are told when there is no room left, by a Python in a container (see `fileprograms`):

    python3 -m support.filefull DIRECTORY

fills the directory, which has room for 80 MiB at most. It prints a JSON object: what was tried, and what happened.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import sqlite3
import sys

from .fileprograms import told, write

_PIECE, _MOST = 256 << 10, 96 << 20


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))


def _fill(name: str) -> str:
    """Write until there is an error: which call had it, and which it was."""
    fd = os.open(name, os.O_CREAT | os.O_WRONLY)
    call = "write"
    try:
        for _ in range(_MOST // _PIECE):
            os.write(fd, b"x" * _PIECE)
        call = "fsync"
        os.fsync(fd)
        call = "none"
    except OSError as error:
        return f"{call}: {_name(error)}"
    finally:
        try:
            os.close(fd)
        except OSError as error:
            call = f"close: {_name(error)}"
    return call


def _map() -> str:
    """Write to a hole of a sparse file by a mapping, in a process of its own."""
    pid = os.fork()
    if pid:
        status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            return signal.Signals(os.WTERMSIG(status)).name
        return errno.errorcode.get(os.WEXITSTATUS(status), "no error")
    said = 0
    try:
        fd = os.open("hole", os.O_CREAT | os.O_RDWR)
        os.ftruncate(fd, _MOST)
        with mmap.mmap(fd, _MOST) as memory:
            memory[:] = b"m" * _MOST
            memory.flush()
        os.fsync(fd)
    except OSError as error:
        said = error.errno or 255
    finally:
        os._exit(said)


def _sqlite() -> str:
    write("reserve", b"r" * _PIECE * 8)
    with contextlib.closing(sqlite3.connect("data", isolation_level=None)) as database:
        try:
            database.execute("CREATE TABLE rows (text)")
            for _ in range(_MOST // _PIECE):
                database.execute("INSERT INTO rows VALUES (?)", ("x" * _PIECE,))
            return "no error"
        except sqlite3.Error as error:
            said = str(error)
    os.unlink("reserve")
    # Whoever comes next, when there is room again, finds what was committed.
    with contextlib.closing(sqlite3.connect("data")) as again:
        (state,) = again.execute("PRAGMA integrity_check").fetchone()
    return f"{said}, integrity {state}"


def main(directory: str, *_: str) -> None:
    os.makedirs(directory)
    os.chdir(directory)
    write("before", b"kept" * 1000)
    found = {
        "written until it is full": _fill("big"),
        "the size is what was written": str(os.stat("big").st_size > 4 << 20),
    }
    with open("before", "rb") as file:
        found["what was there before"] = str(file.read() == b"kept" * 1000)
    os.unlink("big")
    found["written by a mapping until it is full"] = _map()
    if os.path.exists("hole"):
        os.unlink("hole")
    found["SQLite"] = _sqlite()
    os.unlink("data")
    with open("after", "wb") as after:
        after.write(b"x" * _PIECE)
        after.flush()
        os.fsync(after.fileno())
    with open("after", "rb") as after:
        found["written when there is room again"] = str(after.read() == b"x" * _PIECE)
    told(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
