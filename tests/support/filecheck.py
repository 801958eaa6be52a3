"""Checks of what programs expect from a file system, run by a Python in a container as `fileprograms` says.

It prints a JSON object: each check, and true or why it failed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
import socket
import sqlite3
import stat
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from .fileprograms import CALL_TIMEOUT_S, STEP_TIMEOUT_S, There, raises, read, second, serve_at, stuck, told, write

CHECKS: dict[str, Callable[[], object]] = {}
#: Checks of two programs.
PAIRS: dict[str, Callable[[There], object]] = {}
#: Those that two kernels are not asked for: neither sees the other's locks, and who cuts the memory that both have
#: mapped ends the other one.
ONE_KERNEL = ("SQLite with a rollback journal", "SQLite with a write-ahead log")

_CHECK_TIMEOUT_S = CALL_TIMEOUT_S + STEP_TIMEOUT_S


def check(name: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    def enter(function: Callable[[], object]) -> Callable[[], object]:
        CHECKS[name] = function
        return function

    return enter


def _in_child(function: Callable[[], bool]) -> bool:
    """Return the result of a function in a child process."""
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if function() else 1)
        finally:
            os._exit(2)
    return os.waitpid(pid, 0)[1] == 0


@check("hard links")
def _hard_links() -> bool:
    os.link(write("one"), "two")
    first, second = os.stat("one"), os.stat("two")
    os.unlink("one")
    return (first.st_ino, first.st_nlink) == (second.st_ino, 2) and os.stat("two").st_nlink == 1


@check("rename over a file that is open")
def _rename() -> bool:
    with open(write("old", b"old"), "rb") as file:
        os.rename(write("new", b"new"), "old")
        return file.read() == b"old" and read("old") == b"new"


@check("a file that is unlinked and open")
def _unlinked() -> bool:
    with open("gone", "w+b") as file:
        os.unlink("gone")
        file.write(b"still")
        file.flush()
        return os.fstat(file.fileno()).st_size == 5 and os.pread(file.fileno(), 9, 0) == b"still"


@check("rename of a directory that is not empty")
def _rename_directory() -> bool:
    os.makedirs("tree/below")
    write("tree/below/file")
    os.rename("tree", "moved")
    return read("moved/below/file") == b"content"


@check("owner, group, modes, set-user-ID")
def _ownership() -> bool:
    os.chown(write("owned"), 1234, 5678)
    os.chmod("owned", 0o4711)
    info = os.stat("owned")
    return (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (1234, 5678, 0o4711)


@check("times in nanoseconds")
def _times() -> bool:
    os.utime(write("timed"), ns=(1_000_000_007, 2_000_000_009))
    info = os.stat("timed")
    return (info.st_atime_ns, info.st_mtime_ns) == (1_000_000_007, 2_000_000_009)


@check("symbolic links, FIFOs, sockets")
def _kinds() -> bool:
    os.symlink("nowhere", "link")
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        server.listen()
        client.connect("socket")
    return os.readlink("link") == "nowhere" and stat.S_ISFIFO(os.stat("fifo").st_mode)


@check("whiteouts (device 0:0)")
def _whiteouts() -> bool:
    os.mknod("whiteout", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    return os.stat("whiteout").st_rdev == 0


@check("user.* attributes")
def _user_attributes() -> bool:
    os.setxattr(write("attributed"), "user.kata", b"value")
    return os.getxattr("attributed", "user.kata") == b"value" and os.listxattr("attributed") == ["user.kata"]


@check("file capabilities")
def _capabilities() -> bool:
    # CAP_NET_RAW, permitted and effective, version 2 (capability.h).
    value = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(write("capable"), "security.capability", value)
    return os.getxattr("capable", "security.capability") == value


@check("shared writable mappings, seen by readers and other processes")
def _mappings() -> bool:
    with open(write("mapped", bytes(8192)), "r+b") as file, mmap.mmap(file.fileno(), 8192) as memory:
        memory[4096:4100] = b"here"
        seen = _in_child(lambda: memory[4096:4100] == b"here")
        memory.flush()
        return seen and read("mapped")[4096:4100] == b"here"


@check("whole-file locks (flock)")
def _flock() -> bool:
    with open(write("flocked"), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def refused() -> bool:
            with open("flocked", "r+b") as again:
                return raises(errno.EWOULDBLOCK, lambda: fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB))

        return _in_child(refused)


@check("record locks (fcntl)")
def _record_locks() -> bool:
    with open(write("locked", bytes(100)), "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)

        def only_elsewhere() -> bool:
            with open("locked", "r+b") as again:
                fcntl.lockf(again, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 50)
                again.seek(0)
                try:
                    fcntl.lockf(again, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
                except OSError as error:
                    return error.errno in (errno.EAGAIN, errno.EACCES)
                return False

        return _in_child(only_elsewhere)


@check("O_DIRECT")
def _direct() -> bool:
    memory = mmap.mmap(-1, 8192)
    memory[:5] = b"exact"
    fd = os.open("direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    try:
        os.pwritev(fd, [memory], 0)
        back = mmap.mmap(-1, 8192)
        os.preadv(fd, [back], 0)
        return bytes(back[:5]) == b"exact" and os.stat("direct").st_size == 8192
    finally:
        os.close(fd)


@check("O_APPEND from two processes")
def _append_twice() -> bool:
    def append() -> bool:
        with open("log", "ab", buffering=0) as file:
            for _ in range(50):
                file.write(b"0123456789\n")
        return True

    write("log", b"")
    pid = os.fork()
    if not pid:
        append()
        os._exit(0)
    append()
    os.waitpid(pid, 0)
    return read("log") == b"0123456789\n" * 100


@check("sparse files, punched and set aside")
def _sparse() -> bool:
    fd = os.open("sparse", os.O_RDWR | os.O_CREAT)
    try:
        os.truncate(fd, 1 << 30)
        os.pwrite(fd, b"end", (1 << 30) - 3)
        os.posix_fallocate(fd, 0, 8192)
        return os.fstat(fd).st_blocks * 512 < 1 << 20
    finally:
        os.close(fd)


@check("names of 255 bytes, a path of 3000")
def _names() -> bool:
    here = os.getcwd()
    try:
        for _ in range(12):
            os.mkdir("n" * 250)
            os.chdir("n" * 250)
        write("ä" * 127 + "x")
        return os.listdir() == ["ä" * 127 + "x"]
    finally:
        os.chdir(here)


@check("a directory read while files in it go")
def _directory() -> bool:
    os.mkdir("many")
    for number in range(300):
        write(f"many/{number}", b"")
    for entry in os.scandir("many"):
        os.unlink(entry)
    return os.listdir("many") == []


def pair(name: str) -> Callable[[Callable[[There], object]], Callable[[There], object]]:
    def enter(function: Callable[[There], object]) -> Callable[[There], object]:
        PAIRS[name] = function
        return function

    return enter


# What a second program does; it keeps open files between calls.
_kept: dict[str, Any] = {}


def enter(name: str) -> None:
    _kept.clear()
    os.chdir(name)


def put(name: str, text: str) -> None:
    write(name, text.encode())


def get(name: str) -> str:
    return read(name).decode()


def _inode(name: str) -> list[int]:
    info = os.stat(name)
    return [info.st_ino, info.st_nlink, info.st_size, stat.S_IMODE(info.st_mode)]


def _say(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(name)
        client.sendall(b"hello")


def _lock(kind: str, name: str, wait: bool) -> bool:
    """Lock a file, or its first bytes, and keep it locked; False if somebody else has it."""
    _kept[name] = file = open(name, "r+b")  # noqa: SIM115
    operation = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(file, operation) if kind == "flock" else fcntl.lockf(file, operation, 10)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _unlock(name: str) -> None:
    _kept.pop(name).close()


def _map(name: str) -> None:
    with open(name, "r+b") as file:
        _kept[name] = mmap.mmap(file.fileno(), 8192)


def _peek(name: str) -> str:
    return bytes(_kept[name][4096:4100]).decode()


def _poke(name: str, text: str) -> None:
    _kept[name][4096 : 4096 + len(text)] = text.encode()


def _records(name: str, text: str) -> None:
    with open(name, "ab", buffering=0) as file:
        for _ in range(50):
            file.write(f"{text * 10}\n".encode())


def _insert(name: str, who: str, count: int) -> None:
    """Insert rows, each in a transaction of its own, as programs do that do not know of each other."""
    database = sqlite3.connect(name, timeout=STEP_TIMEOUT_S, isolation_level=None)
    try:
        for number in range(count):
            database.execute("INSERT INTO rows VALUES (?, ?)", (who, number))
    except sqlite3.Error as error:
        raise OSError(errno.EIO, str(error)) from error
    finally:
        database.close()


@pair("what one writes the other reads")
def _written(there: There) -> bool:
    put("here", "from here")
    there.call(put, "there", "from there")
    with open("here") as file:
        there.call(put, "here", "again and longer")
        file.seek(0)
        return there.call(get, "here") == file.read() == "again and longer" and get("there") == "from there"


@pair("one inode, its links and modes")
def _same_inode(there: There) -> bool:
    os.link(write("one"), "two")
    there.call(os.chmod, "two", 0o640)
    same = _inode("one") == there.call(_inode, "two") == there.call(_inode, "one")
    there.call(os.unlink, "one")
    return same and _inode("two")[1:] == [1, 7, 0o640] and not os.path.exists("one")


@pair("renamed by the other")
def _renamed(there: There) -> bool:
    with open(write("old"), "rb") as file:
        there.call(os.rename, "old", "new")
        names = sorted(os.listdir())
        return file.read() == b"content" and names == ["new"] and there.call(get, "new") == "content"


@pair("unlinked by the other while it is open")
def _unlinked_there(there: There) -> bool:
    with open(write("gone"), "r+b") as file:
        there.call(os.unlink, "gone")
        file.seek(0, os.SEEK_END)
        file.write(b" stays")
        file.flush()
        return os.pread(file.fileno(), 99, 0) == b"content stays" and os.listdir() == []


@pair("truncated by the other")
def _truncated(there: There) -> bool:
    with open(write("short", b"x" * 9000), "rb") as file:
        there.call(os.truncate, "short", 5)
        return os.fstat(file.fileno()).st_size == 5 and file.read() == b"x" * 5


@pair("rename and link to the other mount")
def _between(there: There) -> bool:
    if not there.directory:
        return True
    to = os.path.join(there.directory, os.path.basename(os.getcwd()), "to")
    write("from")
    calls = (os.rename, os.link)
    return all(raises(errno.EXDEV, lambda call=call: call("from", to)) for call in calls)  # type: ignore[misc]


@pair("Unix socket")
def _socket(there: There) -> bool:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        server.listen()
        there.begin(_say, "socket")
        server.settimeout(STEP_TIMEOUT_S)
        try:
            said = server.accept()[0].recv(99)
        finally:
            there.end()
        return said == b"hello"


@pair("FIFO")
def _fifo(there: There) -> bool:
    os.mkfifo("fifo")
    there.begin(get, "fifo")
    fd = _open_fifo("fifo")
    os.write(fd, b"through")
    os.close(fd)
    return bool(there.end() == "through")


def _open_fifo(name: str) -> int:
    # Without a reader of this FIFO that is ENXIO, and the other one waits for ever.
    deadline = time.monotonic() + STEP_TIMEOUT_S
    while True:
        try:
            return os.open(name, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _locks(there: There, kind: str) -> bool:
    write("locked", bytes(100))
    got = [_lock(kind, "locked", False), there.call(_lock, kind, "locked", False)]
    _unlock("locked")
    got += [there.call(_lock, kind, "locked", False), _lock(kind, "locked", False)]
    return got == [True, False, True, False]


def _waiting_locks(there: There, kind: str) -> bool:
    write("locked", bytes(100))
    _lock(kind, "locked", True)
    there.begin(_lock, kind, "locked", True)
    waited = there.waits()
    _unlock("locked")
    return bool(there.end()) and waited


@pair("whole-file locks (flock)")
def _flock_there(there: There) -> bool:
    return _locks(there, "flock")


@pair("whole-file locks that wait")
def _flock_waits(there: There) -> bool:
    return _waiting_locks(there, "flock")


@pair("whole-file locks by another link")
def _flock_linked(there: There) -> bool:
    os.link(write("locked"), "link")
    got = [_lock("flock", "locked", False), there.call(_lock, "flock", "link", False)]
    return got == [True, False]


@pair("record locks (fcntl)")
def _lockf_there(there: There) -> bool:
    return _locks(there, "lockf")


@pair("record locks that wait")
def _lockf_waits(there: There) -> bool:
    return _waiting_locks(there, "lockf")


@pair("a shared mapping")
def _mapped(there: There) -> bool:
    write("mapped", bytes(8192))
    _map("mapped")
    there.call(_map, "mapped")
    _poke("mapped", "here")
    first = there.call(_peek, "mapped")
    there.call(_poke, "mapped", "back")
    return [first, _peek("mapped")] == ["here", "back"]


@pair("a shared mapping and read")
def _mapped_andread(there: There) -> bool:
    write("mapped", bytes(8192))
    there.call(_map, "mapped")
    there.call(_poke, "mapped", "here")
    return read("mapped")[4096:4100] == b"here"


@pair("O_APPEND")
def _append_there(there: There) -> bool:
    write("log", b"")
    there.begin(_records, "log", "t")
    _records("log", "h")
    there.end()
    return sorted(read("log").split()) == [b"h" * 10] * 50 + [b"t" * 10] * 50


@pair("O_EXCL")
def _exclusive(there: There) -> bool:
    there.begin(_create, 100)
    ours = _create(100)
    return sorted([*ours, *there.end()]) == list(range(100))


def _create(count: int) -> list[int]:
    """Numbers of files that are not there, and are made."""
    made = []
    for number in range(count):
        try:
            os.close(os.open(str(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            continue
        made.append(number)
    return made


def _sqlite(there: There, mode: str, count: int = 150) -> bool:
    database = sqlite3.connect("data", isolation_level=None)
    try:
        if database.execute(f"PRAGMA journal_mode={mode}").fetchone() != (mode,):
            return False
        database.execute("CREATE TABLE rows (who, number)")
        there.begin(_insert, "data", "there", count)
        try:
            _insert("data", "here", count)
        finally:
            there.end()
        counts = database.execute("SELECT who, count(*) FROM rows GROUP BY who ORDER BY who").fetchall()
        (state,) = database.execute("PRAGMA integrity_check").fetchone()
    except sqlite3.Error as error:
        raise OSError(errno.EIO, str(error)) from error
    finally:
        database.close()
    if (counts, state) != ([("here", count), ("there", count)], "ok"):
        raise OSError(errno.EIO, f"{counts}, {state}")
    return True


@pair("SQLite with a rollback journal")
def _sqlite_rollback(there: There) -> bool:
    return _sqlite(there, "delete")


@pair("SQLite with a write-ahead log")
def _sqlite_wal(there: There) -> bool:
    return _sqlite(there, "wal")


@pair("a new file, looked for before")
def _looked_for(there: There) -> bool:
    before = os.path.exists("new"), os.listdir()
    there.call(put, "new", "text")
    return before == (False, []) and os.path.exists("new") and os.listdir() == ["new"]


@pair("a file that grows, read on")
def _grows(there: There) -> bool:
    there.call(put, "log", "one ")
    with open("log") as file:
        said = [file.read()]
        for text in ("two ", "three "):
            there.call(_append, "log", text)
            said.append(file.read())
    return said == ["one ", "two ", "three "]


def _append(name: str, text: str) -> None:
    with open(name, "a") as file:
        file.write(text)


@pair("appended in turns")
def _in_turns(there: There) -> bool:
    with open("log", "ab", buffering=0) as file:
        for _ in range(10):
            file.write(b"h")
            there.call(_append, "log", "t")
    return read("log") == b"ht" * 10


@pair("times that the other sets, and its change")
def _times_there(there: There) -> bool:
    write("timed")
    there.call(_set_time, "timed", 1_000_000_000)
    first = os.stat("timed").st_mtime
    there.call(put, "timed", "longer than it was")
    info = os.stat("timed")
    return first == 1_000_000_000 and info.st_mtime > first and info.st_size == 18


def _set_time(name: str, seconds: int) -> None:
    os.utime(name, (seconds, seconds))


@pair("the directory that one is in, renamed by the other")
def _directory_renamed(there: There) -> bool:
    os.mkdir("directory")
    place = os.getcwd()
    os.chdir("directory")
    try:
        there.call(os.rename, "directory", "renamed")
        write("file")
        os.mkdir("below")
        return os.listdir("..") == ["renamed"] and there.call(get, "renamed/file") == "content"
    finally:
        os.chdir(place)


@pair("a file that is open, in a directory that the other renames and replaces")
def _replaced_directory(there: There) -> bool:
    os.mkdir("directory")
    with open(write("directory/file"), "r+b") as file:
        there.call(_replace_directory)
        file.write(b"changed")
        file.flush()
        os.fchmod(file.fileno(), 0o640)
        return (
            there.call(get, "renamed/file") == "changed"
            and there.call(get, "directory/file") == "other"
            and there.call(_inode, "renamed/file")[3] == 0o640
            and read("directory/file") == b"other"
        )


def _replace_directory() -> None:
    os.rename("directory", "renamed")
    os.mkdir("directory")
    put("directory/file", "other")


_IN_MODIFY, _IN_CREATE = 0x2, 0x100


def _events(path: str, mask: int, cause: Callable[[], object]) -> list[tuple[int, str]]:
    """What inotify(7) tells of a path within three seconds of a cause."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK)
    try:
        if fd < 0 or libc.inotify_add_watch(fd, path.encode(), mask) < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        cause()
        if not select.select([fd], [], [], 3)[0]:
            return []
        data, events = os.read(fd, 4096), []
        while data:
            _, found, _, length = struct.unpack("iIII", data[:16])
            events.append((found, data[16 : 16 + length].rstrip(b"\0").decode()))
            data = data[16 + length :]
        return events
    finally:
        os.close(fd)


@pair("inotify of a directory")
def _watched_directory(there: There) -> bool:
    os.mkdir("watched")
    return (_IN_CREATE, "new") in _events("watched", _IN_CREATE, lambda: there.call(put, "watched/new", "x"))


@pair("inotify of a file")
def _watched_file(there: There) -> bool:
    return (_IN_MODIFY, "") in _events(write("watched"), _IN_MODIFY, lambda: there.call(_records, "watched", "x"))


def _results(root: str, checks: dict[str, Callable[[], object]]) -> dict[str, object]:
    """Run each check in a directory of its own; say true, or why it failed."""
    found: dict[str, object] = {}
    signal.signal(signal.SIGALRM, stuck)
    for index, (name, function) in enumerate(checks.items()):
        place = os.path.join(root, f"check-{index}")
        try:
            os.mkdir(place)
            os.chdir(place)
            signal.alarm(_CHECK_TIMEOUT_S)
            found[name] = True if function() else "is not so"
        except OSError as error:
            found[name] = error.strerror or type(error).__name__
        finally:
            signal.alarm(0)
    return found


def _as_check(function: Callable[[There], object], there: There) -> Callable[[], object]:
    def run() -> object:
        there.call(enter, os.path.basename(os.getcwd()))
        _kept.clear()
        return function(there)

    return run


def main(directory: str, other: str = "", *more: str) -> None:
    if directory == "--serve":
        serve_at(more[0], other, globals())
        return
    os.makedirs(directory, exist_ok=True)
    if not other:
        told(_results(directory, CHECKS))
        return
    there = second(other, globals())
    asked = (name for name in PAIRS if other != "-" or name not in ONE_KERNEL)
    told(_results(directory, {name: _as_check(PAIRS[name], there) for name in asked}), other)


if __name__ == "__main__":
    main(*sys.argv[1:])
