"""What programs have met on shared file systems and did not expect, by a Python in a container (see `fileprograms`).

It prints a JSON object: each check, and true or why it failed. What every file system has to do is in `filecheck`.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import stat
import struct
import sys
from collections.abc import Callable

from .fileprograms import told, write

CHECKS: dict[str, Callable[[], object]] = {}

_LIBC = ctypes.CDLL(None, use_errno=True)
#: Flags of fallocate(2), renameat2(2), inotify(7).
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
_NOREPLACE, _EXCHANGE = 1, 2
_IN_MODIFY, _IN_CREATE = 0x2, 0x100
#: Of linkat(2).
_AT_FDCWD, _SYMLINK_FOLLOW = -100, 0x400
#: Tags of entries in an access control list (linux/posix_acl.h).
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 1, 2, 4, 16, 32


def check(name: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    def enter(function: Callable[[], object]) -> Callable[[], object]:
        CHECKS[name] = function
        return function

    return enter


def _call(function: str, *arguments: object) -> None:
    if getattr(_LIBC, function)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _as_user(uid: int, function: Callable[[], bool]) -> bool:
    """The result of a function in a child process of a user without groups and capabilities."""
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os._exit(0 if function() else 1)
        finally:
            os._exit(2)
    return os.waitpid(pid, 0)[1] == 0


def _can_write(name: str) -> bool:
    try:
        os.close(os.open(name, os.O_RDWR))
    except PermissionError:
        return False
    return True


@check("a file that is unlinked and open: size, mode, owner, times, attributes")
def _unlinked() -> bool:
    with open("gone", "w+b") as file:
        os.unlink("gone")
        os.ftruncate(file.fileno(), 100)
        os.fchmod(file.fileno(), 0o640)
        os.fchown(file.fileno(), 1, 2)
        os.utime(file.fileno(), (1, 2))
        os.setxattr(file.fileno(), "user.kata", b"value")
        info = os.fstat(file.fileno())
        return (info.st_size, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime) == (
            *(100, 0o640, 1, 2, 2),
        ) and os.getxattr(file.fileno(), "user.kata") == b"value"


@check("a file that is unlinked and open: shared mapping")
def _unlinked_mapping() -> bool:
    with open("gone", "w+b") as file:
        os.unlink("gone")
        os.write(file.fileno(), bytes(4096))
        with mmap.mmap(file.fileno(), 4096) as memory:
            memory[:4] = b"here"
            memory.flush()
        return os.pread(file.fileno(), 4, 0) == b"here"


@check("a file that is unlinked and open: opened again through /proc")
def _unlinked_again() -> bool:
    with open("gone", "w+b") as file:
        file.write(b"still")
        file.flush()
        os.unlink("gone")
        with open(f"/proc/self/fd/{file.fileno()}", "rb") as again:
            return again.read() == b"still"


@check("a file that was replaced, by its descriptor")
def _replaced() -> bool:
    with open("a", "w+b") as file:
        file.write(b"old")
        file.flush()
        os.chmod(write("b", b"newer"), 0o600)
        os.rename("b", "a")
        os.ftruncate(file.fileno(), 1)
        os.fchmod(file.fileno(), 0o777)
        now = os.stat("a")
        return (now.st_size, stat.S_IMODE(now.st_mode)) == (5, 0o600) and os.fstat(file.fileno()).st_size == 1


@check("written by a mapping, read at once")
def _mapped_then_read() -> bool:
    with open(write("mapped", bytes(8192)), "r+b") as file, mmap.mmap(file.fileno(), 8192) as memory:
        memory[:4] = b"here"
        return os.pread(file.fileno(), 4, 0) == b"here"


@check("fallocate: without size, zeroed, punched; holes found")
def _allocated() -> bool:
    fd = os.open("allocated", os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, b"x" * 65536, 0)
        for mode, offset, length in (
            (_KEEP_SIZE, 65536, 65536),
            (_ZERO_RANGE, 0, 4096),
            (_PUNCH_HOLE | _KEEP_SIZE, 16384, 16384),
        ):
            _call("fallocate", fd, mode, ctypes.c_long(offset), ctypes.c_long(length))
        os.fsync(fd)
        return (
            os.fstat(fd).st_size == 65536
            and os.pread(fd, 1, 0) == b"\0"
            and os.pread(fd, 1, 20000) == b"\0"
            and os.lseek(fd, 8192, os.SEEK_HOLE) == 16384
            and os.lseek(fd, 16384, os.SEEK_DATA) == 32768
        )
    finally:
        os.close(fd)


@check("renameat2: without replacing")
def _noreplace() -> bool:
    write("one"), write("two")
    _call("renameat2", _AT_FDCWD, b"one", _AT_FDCWD, b"three", _NOREPLACE)
    try:
        _call("renameat2", _AT_FDCWD, b"three", _AT_FDCWD, b"two", _NOREPLACE)
    except FileExistsError:
        return True
    return False


@check("renameat2: exchanging")
def _exchange() -> bool:
    write("one", b"1"), write("two", b"2")
    _call("renameat2", _AT_FDCWD, b"one", _AT_FDCWD, b"two", _EXCHANGE)
    with open("one", "rb") as file:
        return file.read() == b"2"


@check("a file without a name (O_TMPFILE), then with one")
def _without_name() -> bool:
    fd = os.open(".", os.O_RDWR | os.O_TMPFILE, 0o600)
    try:
        os.write(fd, b"content")
        _call("linkat", _AT_FDCWD, f"/proc/self/fd/{fd}".encode(), _AT_FDCWD, b"named", _SYMLINK_FOLLOW)
    finally:
        os.close(fd)
    return os.stat("named").st_size == 7


@check("inotify: changes in a directory that nobody else holds open")
def _watched() -> bool:
    os.mkdir("watched")
    write("watched/old")
    fd = _LIBC.inotify_init1(os.O_CLOEXEC)
    try:
        _call("inotify_add_watch", fd, b"watched", _IN_CREATE | _IN_MODIFY)
        os.stat("watched/old")
        write("watched/new")
        if not select.select([fd], [], [], 10)[0]:
            return False
        return b"new" in os.read(fd, 4096)
    finally:
        os.close(fd)


def _acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, mode, who) for tag, mode, who in entries)


_NOBODY = 0xFFFFFFFF
_USER_1000_WRITES = _acl(
    *((_USER_OBJ, 6, _NOBODY), (_USER, 7, 1000), (_GROUP_OBJ, 4, _NOBODY), (_MASK, 7, _NOBODY), (_OTHER, 0, _NOBODY))
)


@check("access control list: whom it names, and nobody else")
def _access_list() -> bool:
    os.chmod(".", 0o755)
    os.chmod(write("listed"), 0o640)
    os.chown("listed", 0, 2000)
    os.setxattr("listed", "system.posix_acl_access", _USER_1000_WRITES)
    return (
        _as_user(1000, lambda: _can_write("listed"))
        and not _as_user(2000, lambda: _can_write("listed"))
        and not _as_user(3000, lambda: _can_write("listed"))
    )


@check("access control list: inherited")
def _default_list() -> bool:
    os.chmod(".", 0o755)
    os.mkdir("directory")
    os.setxattr("directory", "system.posix_acl_default", _USER_1000_WRITES)
    os.close(os.open("directory/new", os.O_CREAT | os.O_WRONLY, 0o660))
    return _as_user(1000, lambda: _can_write("directory/new"))


@check("300 directories in each other")
def _deep() -> bool:
    here = os.getcwd()
    try:
        for _ in range(300):
            os.mkdir("d" * 19)
            os.chdir("d" * 19)
        write("file")
        return os.listdir() == ["file"]
    finally:
        os.chdir(here)


@check("names of any bytes")
def _any_bytes() -> bool:
    os.mkdir("named")
    names = {bytes([byte]) * 200 for byte in (*range(1, 47), *range(48, 256))}
    for name in names:
        write(os.fsdecode(b"named/" + name))
    return {os.fsencode(name) for name in os.listdir("named")} == names


@check("a sparse file of more than 4 GiB")
def _large() -> bool:
    fd = os.open("large", os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, b"end", 5 << 30)
        info = os.fstat(fd)
        return info.st_size == (5 << 30) + 3 and os.pread(fd, 3, 5 << 30) == b"end" and info.st_blocks * 512 < 1 << 20
    finally:
        os.close(fd)


@check("set-user-ID gone when another user writes")
def _set_user_id() -> bool:
    os.chmod(".", 0o755)
    os.chmod(write("program"), 0o4777)

    def written() -> bool:
        with open("program", "r+b") as file:
            file.write(b"x")
        return True

    return _as_user(1000, written) and not os.stat("program").st_mode & stat.S_ISUID


def main(directory: str, *_: str) -> None:
    os.makedirs(directory)
    os.umask(0o022)
    found: dict[str, object] = {}
    for index, (name, function) in enumerate(CHECKS.items()):
        place = os.path.join(directory, f"check-{index}")
        try:
            os.mkdir(place)
            os.chdir(place)
            found[name] = True if function() else "is not so"
        except OSError as error:
            found[name] = error.strerror or errno.errorcode.get(error.errno or 0, type(error).__name__)
    told(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
