"""Checks of what programs expect from a file system, run by a Python in a container:

    python3 filecheck.py DIRECTORY

prints a JSON object: each check, and true or why it failed. It needs only Python's standard library.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import socket
import stat
import sys
from collections.abc import Callable

CHECKS: dict[str, Callable[[], object]] = {}


def check(name: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    def enter(function: Callable[[], object]) -> Callable[[], object]:
        CHECKS[name] = function
        return function

    return enter


def _write(name: str, content: bytes = b"content") -> str:
    with open(name, "wb") as file:
        file.write(content)
    return name


def _read(name: str) -> bytes:
    with open(name, "rb") as file:
        return file.read()


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
    os.link(_write("one"), "two")
    first, second = os.stat("one"), os.stat("two")
    os.unlink("one")
    return (first.st_ino, first.st_nlink) == (second.st_ino, 2) and os.stat("two").st_nlink == 1


@check("rename over a file that is open")
def _rename() -> bool:
    with open(_write("old", b"old"), "rb") as file:
        os.rename(_write("new", b"new"), "old")
        return file.read() == b"old" and _read("old") == b"new"


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
    _write("tree/below/file")
    os.rename("tree", "moved")
    return _read("moved/below/file") == b"content"


@check("owner, group, modes, set-user-ID")
def _ownership() -> bool:
    os.chown(_write("owned"), 1234, 5678)
    os.chmod("owned", 0o4711)
    info = os.stat("owned")
    return (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (1234, 5678, 0o4711)


@check("times in nanoseconds")
def _times() -> bool:
    os.utime(_write("timed"), ns=(1_000_000_007, 2_000_000_009))
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
    os.setxattr(_write("attributed"), "user.kata", b"value")
    return os.getxattr("attributed", "user.kata") == b"value" and os.listxattr("attributed") == ["user.kata"]


@check("file capabilities")
def _capabilities() -> bool:
    # CAP_NET_RAW, permitted and effective, version 2 (capability.h).
    value = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(_write("capable"), "security.capability", value)
    return os.getxattr("capable", "security.capability") == value


@check("shared writable mappings, seen by readers and other processes")
def _mappings() -> bool:
    with open(_write("mapped", bytes(8192)), "r+b") as file, mmap.mmap(file.fileno(), 8192) as memory:
        memory[4096:4100] = b"here"
        seen = _in_child(lambda: memory[4096:4100] == b"here")
        memory.flush()
        return seen and _read("mapped")[4096:4100] == b"here"


@check("whole-file locks (flock)")
def _flock() -> bool:
    with open(_write("flocked"), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def refused() -> bool:
            with open("flocked", "r+b") as again:
                return _raises(errno.EWOULDBLOCK, lambda: fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB))

        return _in_child(refused)


@check("record locks (fcntl)")
def _record_locks() -> bool:
    with open(_write("locked", bytes(100)), "r+b") as file:
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
def _append() -> bool:
    def append() -> bool:
        with open("log", "ab", buffering=0) as file:
            for _ in range(50):
                file.write(b"0123456789\n")
        return True

    _write("log", b"")
    pid = os.fork()
    if not pid:
        append()
        os._exit(0)
    append()
    os.waitpid(pid, 0)
    return _read("log") == b"0123456789\n" * 100


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
        _write("ä" * 127 + "x")
        return os.listdir() == ["ä" * 127 + "x"]
    finally:
        os.chdir(here)


@check("a directory read while files in it go")
def _directory() -> bool:
    os.mkdir("many")
    for number in range(300):
        _write(f"many/{number}", b"")
    for entry in os.scandir("many"):
        os.unlink(entry)
    return os.listdir("many") == []


def _raises(number: int, function: Callable[[], object]) -> bool:
    try:
        function()
    except OSError as error:
        return error.errno == number
    return False


def main(directory: str) -> None:
    os.makedirs(directory)
    found: dict[str, object] = {}
    for index, (name, function) in enumerate(CHECKS.items()):
        place = os.path.join(directory, f"check-{index}")
        try:
            os.mkdir(place)
            os.chdir(place)
            found[name] = True if function() else "is not so"
        except OSError as error:
            found[name] = error.strerror or type(error).__name__
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
