"""What the system calls on files do, case by case and error by error, by a Python in a container (see `fileprograms`).

The cases are those that pjdfstest has by intent, and what else POSIX and Linux's manual pages promise. One program
prepares and looks, and the other one acts, as a user of its own; without a second one both are one. It prints a JSON
object: each case, what is right, and what happened: the result, the name of the error, or "ok".
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from .fileprograms import CALL_TIMEOUT_S, There, second, serve_at, stuck, told, write

#: A user: its id, its group, its other groups. Only the first has capabilities.
Who = tuple[int, int, tuple[int, ...]]
ROOT: Who = (0, 0, ())
ROOT_AS_50: Who = (0, 50, ())
USER: Who = (65534, 65534, ())
OTHER: Who = (65533, 65533, ())
MEMBER: Who = (65532, 65532, (2000,))

#: What can have a name, but for devices, which not every place can have.
KINDS = ("file", "directory", "fifo", "socket", "link")
_NOT_LINKS = KINDS[:-1]
_NOT_DIRECTORIES = ("file", "fifo", "socket", "link")

_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW = -100, 0x100
#: Of utimensat(2), in place of nanoseconds.
_NOW, _OMIT = (1 << 30) - 1, (1 << 30) - 2
_ELSEWHERE = "/dev/shm"


# ------------------------------------------------------------------------------------------------ what a program can do


def _nothing(function: Callable[..., object]) -> Callable[..., None]:
    def run(*arguments: object) -> None:
        function(*arguments)

    return run


def _open(name: str, flags: int, mode: int = 0o666) -> None:
    os.close(os.open(name, flags, mode))


def _create(name: str, mode: int = 0o666) -> None:
    _open(name, os.O_CREAT | os.O_RDWR, mode)


def _written(name: str, flags: int, text: str, mode: int = 0o666) -> str:
    """Write by a new descriptor, and what can be read by it then."""
    fd = os.open(name, flags, mode)
    try:
        os.write(fd, text.encode())
        return os.pread(fd, 99, 0).decode() if flags & os.O_RDWR else "ok"
    finally:
        os.close(fd)


def _by_descriptor(name: str, flags: int, call: str, *arguments: Any) -> None:
    fd = os.open(name, flags)
    try:
        getattr(os, call)(fd, *arguments)
    finally:
        os.close(fd)


def _by_mapping(name: str) -> None:
    with open(name, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[:1] = b"x"
        memory.flush()


def _socket(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)


def _set_times(name: str, accessed: list[int], modified: list[int], flags: int = 0) -> None:
    """Set times with utimensat(2): seconds and nanoseconds each."""
    times = (ctypes.c_long * 4)(*accessed, *modified)
    if _LIBC.utimensat(_AT_FDCWD, os.fsencode(name), times, flags) < 0:
        raise OSError(ctypes.get_errno(), "utimensat")


def _run(name: str) -> None:
    done = subprocess.run([os.path.abspath(name), "0"], check=False)
    if done.returncode:
        raise OSError(errno.ENOEXEC, name)


def _kind(name: str) -> str:
    mode = os.lstat(name).st_mode
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}
    return {**kinds, stat.S_IFLNK: "link", stat.S_IFCHR: "device", stat.S_IFBLK: "disk"}[stat.S_IFMT(mode)]


def _times_of(name: str) -> str:
    info = os.lstat(name)
    return " ".join(f"{ns // 10**9}.{ns % 10**9:09}" for ns in (info.st_atime_ns, info.st_mtime_ns))


def _recent(name: str) -> str:
    """Whether both times are those of a moment ago."""
    info = os.lstat(name)
    return str(all(abs(time.time() - seconds) < CALL_TIMEOUT_S for seconds in (info.st_atime, info.st_mtime)))


def _device(name: str) -> str:
    number = os.lstat(name).st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def _permitted(letter: str, call: Callable[..., object], *arguments: Any) -> str:
    try:
        call(*arguments)
    except PermissionError:
        return "-"
    return letter


def _allowed(name: str) -> str:
    """What may be done with a file: r, w, x."""
    executed = "x" if os.access(name, os.X_OK, effective_ids=True) else "-"
    return _permitted("r", _open, name, os.O_RDONLY) + _permitted("w", _open, name, os.O_WRONLY) + executed


def _allowed_in(name: str) -> str:
    """What may be done in a directory that has a file: list it, create in it, look at what is in it."""
    listed, created = _permitted("l", os.listdir, name), _permitted("c", os.mkdir, f"{name}/new")
    return listed + created + _permitted("s", os.stat, f"{name}/file")


def _in_removed(name: str) -> None:
    """Create a file in a directory that is open and has been removed."""
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.rmdir(name)
        os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    finally:
        os.close(fd)


def _links_of_removed(name: str) -> str:
    fd = os.open(name, os.O_RDONLY)
    try:
        _remove(name)
        return str(os.fstat(fd).st_nlink)
    finally:
        os.close(fd)


def _remove(name: str) -> None:
    (os.rmdir if _kind(name) == "directory" else os.unlink)(name)


CALLS: dict[str, Callable[..., object]] = {
    **{name: getattr(os, name) for name in ("chmod", "chown", "lchown", "mkdir", "mkfifo", "rename", "rmdir")},
    **{name: getattr(os, name) for name in ("symlink", "truncate", "unlink", "readlink")},
    "open": _open,
    "create": _create,
    "stat": _nothing(os.stat),
    "listdir": _nothing(os.listdir),
    "link": lambda source, to: os.link(source, to, follow_symlinks=False),
    "mknod": lambda name, mode, major=0, minor=0: os.mknod(name, mode, os.makedev(major, minor)),
    "setxattr": lambda name, key, value: os.setxattr(name, key, value.encode()),
    "socket": _socket,
    "times": _set_times,
    "touch": lambda name: _set_times(name, [0, _NOW], [0, _NOW]),
    "write": _written,
    "by descriptor": _by_descriptor,
    "by mapping": _by_mapping,
    "remove": _remove,
    "run": _run,
    "kind": _kind,
    "mode": lambda name: f"{stat.S_IMODE(os.lstat(name).st_mode):04o}",
    "owner": lambda name: f"{os.lstat(name).st_uid}:{os.lstat(name).st_gid}",
    "links": lambda name: str(os.lstat(name).st_nlink),
    "size": lambda name: str(os.lstat(name).st_size),
    "text": lambda name: open(name, errors="surrogateescape").read(),  # noqa: SIM115
    "names": lambda name: " ".join(sorted(os.listdir(name))),
    "same": lambda one, two: str(os.path.samestat(os.lstat(one), os.lstat(two))),
    "device": _device,
    "times of": _times_of,
    "modified": lambda name: str(int(os.lstat(name).st_mtime)),
    "recent": _recent,
    "allowed": _allowed,
    "allowed in": _allowed_in,
    "in removed": _in_removed,
    "links of removed": _links_of_removed,
}


def perform(call: str, arguments: list[Any], who: list[Any], umask: int) -> str:
    """Do something as a user; return the result, the name of the error, or "ok"."""
    uid, gid, groups = who
    os.umask(umask)
    try:
        os.setgroups(groups)
        os.setegid(gid)
        os.seteuid(uid)
        said = CALLS[call](*arguments)
        return said if isinstance(said, str) else "ok"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])
        os.umask(0)


def enter(name: str) -> None:
    os.chdir(name)


# ------------------------------------------------------------------------------------------------------------ the table


class Table:
    """Cases, and what happened.

    Args:
        root: the directory that it is about.
        there: the program that acts; None: this one.
        read_only: a directory that may only be read and has a `file`, a `directory` and a `link`; "" without one.

    Attributes:
        cases: what is right, and what happened.
    """

    def __init__(self, root: str, there: There | None, read_only: str = "") -> None:
        self.cases: dict[str, tuple[str, str]] = {}
        self.read_only = read_only
        self._root = root
        self._there = there

    def enter(self, name: str) -> None:
        """Have both programs go to a directory in the one that it is about."""
        os.chdir(self._root)
        enter(name)
        if self._there is not None:
            self._there.call(enter, name)

    def do(self, call: str, *arguments: Any, who: Who = ROOT, umask: int = 0) -> str:
        what = (call, list(arguments), list(who), umask)
        said = self._there.call(perform, *what) if self._there is not None else perform(*what)
        return str(said)

    def act(self, case: str, right: str, call: str, *arguments: Any, who: Who = ROOT, umask: int = 0) -> None:
        """Do what is tried."""
        self.say(case, right, self.do(call, *arguments, who=who, umask=umask))

    def see(self, case: str, right: str, call: str, *arguments: Any) -> None:
        """Look at what has become of it."""
        self.say(case, right, perform(call, list(arguments), list(ROOT), 0))

    def say(self, case: str, right: str, happened: str) -> None:
        if case in self.cases:
            raise AssertionError(f"two cases are called {case!r}")
        self.cases[case] = right, happened


def make(kind: str, name: str, mode: int | None = None, owner: Who | tuple[int, int] = ROOT) -> str:
    if kind == "file":
        write(name)
    elif kind == "link":
        os.symlink("nowhere", name)
    else:
        makers: dict[str, Callable[[str], None]] = {"directory": os.mkdir, "fifo": os.mkfifo, "socket": _socket}
        makers[kind](name)
    os.lchown(name, *owner[:2])
    if mode is not None:
        os.chmod(name, mode)
    return name


# Calls on one path: what they need besides it. Those that make it, and those that need it.
_MAKERS: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "create": lambda path: ("create", path),
    "mkdir": lambda path: ("mkdir", path),
    "mkfifo": lambda path: ("mkfifo", path),
    "symlink": lambda path: ("symlink", "nowhere", path),
    "link to": lambda path: ("link", "mine", path),
    "rename to": lambda path: ("rename", "moved", path),
}
_USERS: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "open": lambda path: ("open", path, os.O_RDONLY),
    "stat": lambda path: ("stat", path),
    "listdir": lambda path: ("listdir", path),
    "chmod": lambda path: ("chmod", path, 0o644),
    "chown": lambda path: ("chown", path, 0, 0),
    "truncate": lambda path: ("truncate", path, 0),
    "utimensat": lambda path: ("touch", path),
    "link from": lambda path: ("link", path, "new"),
    "rename from": lambda path: ("rename", path, "new"),
    "unlink": lambda path: ("unlink", path),
    "rmdir": lambda path: ("rmdir", path),
    "readlink": lambda path: ("readlink", path),
}
_FOLLOWERS = ("open", "stat", "listdir", "chmod", "chown", "truncate", "utimensat")


def _paths(table: Table) -> None:
    make("file", "mine", 0o666, USER)
    make("file", "file")
    make("directory", "closed", 0o666)
    make("directory", "kept", 0o555)
    make("file", "kept/file", 0o666, USER)
    make("directory", "kept/directory", 0o777, USER)
    os.symlink("loop", "loop")
    long_path = "./" * 2047 + "xx"
    for name, arguments in (_MAKERS | _USERS).items():
        make("file", "moved", 0o666, USER)
        for what, path, right in (
            ("an empty path", "", "ENOENT"),
            ("a file as directory", "file/x", "ENOTDIR"),
            ("a missing directory", "none/x", "ENOENT"),
            ("a loop of links", "loop/x", "ELOOP"),
            ("a name of 256 bytes", "n" * 256, "ENAMETOOLONG"),
            ("a path of 4096 bytes", long_path, "ENAMETOOLONG"),
        ):
            table.act(f"{name}: {what}", right, *arguments(path))
        table.act(f"{name}: a directory that may not be searched", "EACCES", *arguments("closed/x"), who=USER)
        os.unlink("moved")
    for name, arguments in _MAKERS.items():
        make("file", "moved", 0o666, USER)
        table.act(f"{name}: a directory that may not be written", "EACCES", *arguments("kept/new"), who=USER)
        for what, path in (("a name of 255 bytes", "n" * 255), ("a path of 4095 bytes", long_path[:-1])):
            table.act(f"{name}: {what}", "ok", *arguments(path))
            table.see(f"{name}: {what} is there", "ok", "remove", path)
            make("file", "moved", 0o666, USER) if not os.path.exists("moved") else None
        os.unlink("moved")
    for name in ("unlink", "rename from"):
        table.act(f"{name}: in a directory that may not be written", "EACCES", *_USERS[name]("kept/file"), who=USER)
    table.act("rmdir: in a directory that may not be written", "EACCES", "rmdir", "kept/directory", who=USER)
    for name, arguments in _USERS.items():
        table.act(f"{name}: what is not there", "ENOENT", *arguments("none"))
        if name in _FOLLOWERS:
            table.act(f"{name}: a link to itself", "ELOOP", *arguments("loop"))
    for kind in KINDS:
        make(kind, f"a-{kind}")
        for name in ("mkdir", "mkfifo", "symlink", "link to"):
            table.act(f"{name}: where a {kind} is", "EEXIST", *_MAKERS[name](f"a-{kind}"))
        table.act(f"open: O_EXCL where a {kind} is", "EEXIST", "open", f"a-{kind}", os.O_CREAT | os.O_EXCL | os.O_RDWR)
    table.act("open: a file with a slash behind", "ENOTDIR", "open", "file/", os.O_RDONLY)
    table.act("unlink: a file with a slash behind", "ENOTDIR", "unlink", "file/")
    table.act("rename: a file to a name with a slash behind", "ENOTDIR", "rename", "file", "new/")
    table.act("mkdir: a name with a slash behind", "ok", "mkdir", "slash/")


def _permissions(table: Table) -> None:
    classes: tuple[tuple[str, Who, tuple[int, int], int], ...] = (
        ("the owner", USER, (65534, 1), 6),
        ("the group", USER, (1, 65534), 3),
        ("another group of the user's", MEMBER, (1, 2000), 3),
        ("others", USER, (1, 1), 0),
    )
    for what, who, owner, shift in classes:
        for bits in range(8):
            mode = (0o777 & ~(7 << shift)) | bits << shift
            name = make("file", f"file-{shift}-{who[0]}-{bits}", mode, owner)
            right = "".join(letter if bits & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))
            table.act(f"permissions of {what} in {mode:04o}: file", right, "allowed", name, who=who)
            name = f"directory-{shift}-{who[0]}-{bits}"
            make("file", f"{make('directory', name)}/file")
            os.chown(name, *owner)
            os.chmod(name, mode)
            right = "".join(letter if bits & bit == bit else "-" for letter, bit in (("l", 4), ("c", 3), ("s", 1)))
            table.act(f"permissions of {what} in {mode:04o}: directory", right, "allowed in", name, who=who)
    make("file", "none", 0)
    table.act("permissions: root may what nobody may", "rw-", "allowed", "none")


def _chmod(table: Table) -> None:
    for kind in _NOT_LINKS:
        make(kind, kind)
        for mode in (0o000, 0o751, 0o7777):
            table.act(f"chmod: {kind}, {mode:04o}", "ok", "chmod", kind, mode)
            table.see(f"chmod: {kind}, {mode:04o} is seen", f"{mode:04o}", "mode", kind)
    make("file", "mine", 0o644, USER)
    table.act("chmod: one's own file", "ok", "chmod", "mine", 0o600, who=USER)
    table.act("chmod: the file of another", "EPERM", "chmod", "mine", 0o666, who=OTHER)
    table.see("chmod: the file of another is as it was", "0600", "mode", "mine")
    table.act("chmod: the sticky bit of one's own file", "ok", "chmod", "mine", 0o1644, who=USER)
    table.see("chmod: the sticky bit of one's own file is seen", "1644", "mode", "mine")
    os.symlink("mine", "to-mine")
    table.act("chmod: through a link", "ok", "chmod", "to-mine", 0o640, who=USER)
    table.see("chmod: through a link is seen", "0640", "mode", "mine")
    table.act("fchmod: one's own file", "ok", "by descriptor", "mine", os.O_RDONLY, "fchmod", 0o604, who=USER)
    table.see("fchmod: one's own file is seen", "0604", "mode", "mine")
    for what, who, group, right in (
        ("of a group that one is not in", USER, 2000, "0755"),
        ("of another group of one's", MEMBER, 2000, "2755"),
        ("of any group, by root", ROOT, 2000, "2755"),
    ):
        name = make("file", f"group-{who[0]}", 0o644, (who[0], group))
        table.act(f"chmod: set-group-ID {what}", "ok", "chmod", name, 0o2755, who=who)
        table.see(f"chmod: set-group-ID {what} is seen", right, "mode", name)


def _chown(table: Table) -> None:
    for kind in KINDS:
        make(kind, kind)
        table.act(f"lchown: {kind}", "ok", "lchown", kind, 65534, 65533)
        table.see(f"lchown: {kind} is seen", "65534:65533", "owner", kind)
        table.act(f"lchown: {kind}, only the group", "ok", "lchown", kind, -1, 7)
        table.act(f"lchown: {kind}, only the owner", "ok", "lchown", kind, 8, -1)
        table.see(f"lchown: {kind}, one by one", "8:7", "owner", kind)
    make("file", "target")
    os.symlink("target", "to")
    table.act("chown: through a link", "ok", "chown", "to", 11, 12)
    table.see("chown: through a link: the target", "11:12", "owner", "target")
    table.see("chown: through a link: not the link", "0:0", "owner", "to")
    for kind in ("file", "directory", "fifo"):
        name = make(kind, f"own-{kind}", 0o644, MEMBER)
        for what, owner, right in (
            ("to oneself", (65532, 65532), "ok"),
            ("to another group of one's", (65532, 2000), "ok"),
            ("to a group that one is not in", (-1, 2001), "EPERM"),
            ("to another user", (65534, -1), "EPERM"),
        ):
            table.act(f"chown: one's own {kind} {what}", right, "chown", name, *owner, who=MEMBER)
        table.act(f"chown: the {kind} of another", "EPERM", "chown", name, 65534, -1, who=USER)
        table.see(f"chown: one's own {kind} is whose it was", "65532:2000", "owner", name)
    for what, who, kind, before, right in (
        ("file, by root", ROOT, "file", 0o6777, "0777"),
        ("file, by its owner", MEMBER, "file", 0o6777, "0777"),
        ("file that nobody may execute, by root", ROOT, "file", 0o2666, "2666"),
        ("directory, by root", ROOT, "directory", 0o6777, "6777"),
        ("directory, by its owner", MEMBER, "directory", 0o6777, "6777"),
    ):
        name = make(kind, f"bits-{what}", None, MEMBER)
        os.chmod(name, before)
        table.act(f"chown: set-ID bits of a {what}", "ok", "chown", name, -1, 2000, who=who)
        table.see(f"chown: set-ID bits of a {what} are seen", right, "mode", name)
    make("file", "by-descriptor")
    table.act("fchown", "ok", "by descriptor", "by-descriptor", os.O_RDONLY, "fchown", 13, 14)
    table.see("fchown is seen", "13:14", "owner", "by-descriptor")


def _link(table: Table) -> None:
    for kind in _NOT_DIRECTORIES:
        make(kind, kind)
        table.act(f"link: {kind}", "ok", "link", kind, f"{kind}-2")
        table.see(f"link: {kind} is the same", "True", "same", kind, f"{kind}-2")
        table.see(f"link: {kind} has two", "2", "links", kind)
        table.act(f"link: {kind}, one is removed", "ok", "unlink", kind)
        table.see(f"link: {kind}, one is left", "1", "links", f"{kind}-2")
    make("directory", "directory")
    table.act("link: a directory", "EPERM", "link", "directory", "directory-2")
    make("file", "file")
    os.link("file", "again")
    table.act("link: what is written by one name", "ok", "write", "again", os.O_WRONLY | os.O_APPEND, " more")
    table.see("link: what is written by one name is read by the other", "content more", "text", "file")
    table.act("link: chmod by one name", "ok", "chmod", "again", 0o604)
    table.see("link: chmod by one name is seen by the other", "0604", "mode", "file")
    table.act("link: to another file system", "EXDEV", "link", "file", f"{_ELSEWHERE}/kata-file-cases")
    make("directory", "there", 0o777)
    table.act("link: into another directory", "ok", "link", "file", "there/file")
    table.see("link: into another directory is seen", "3", "links", "there/file")


def _making(table: Table) -> None:
    make("directory", "setgid")
    os.chown("setgid", 0, 2000)
    os.chmod("setgid", 0o2777)
    make("directory", "group", 0o770, (0, 2000))
    make("directory", "own-group", 0o770, (0, 65534))
    make("directory", "own", 0o700, USER)
    makers: dict[str, Callable[[str], tuple[Any, ...]]] = {
        "create": lambda path: ("create", path, 0o777),
        "mkdir": lambda path: ("mkdir", path, 0o777),
        "mkfifo": lambda path: ("mkfifo", path, 0o777),
        "mknod of a file": lambda path: ("mknod", path, stat.S_IFREG | 0o777),
        "mknod of a socket": lambda path: ("mknod", path, stat.S_IFSOCK | 0o777),
        "bind": lambda path: ("socket", path),
        "symlink": lambda path: ("symlink", "nowhere", path),
    }
    for name, arguments in makers.items():
        file = name.replace(" ", "-")
        modes = name != "symlink"
        table.act(f"{name}: with a umask", "ok", *arguments(file), umask=0o027)
        if modes:
            table.see(f"{name}: with a umask: mode", "0750", "mode", file)
        for what, place, who, owner in (
            ("by a user", ".", USER, "65534:65534"),
            ("by root as group 50", ".", ROOT_AS_50, "0:50"),
            ("again by root as group 50", ".", ROOT_AS_50, "0:50"),
            ("by a user, in a directory of its own", "own", USER, "65534:65534"),
            ("by a user, where its group may write", "own-group", USER, "65534:65534"),
            ("by a user, where another group of it may write", "group", MEMBER, "65532:65532"),
            ("by a user, in a directory with set-group-ID", "setgid", USER, "65534:2000"),
            ("by root, in a directory with set-group-ID", "setgid", ROOT, "0:2000"),
        ):
            path = f"{place}/{file}-{what.replace(' ', '-')}"
            table.act(f"{name}: {what}", "ok", *arguments(path), who=who)
            table.see(f"{name}: {what}: owner", owner, "owner", path)
            if place == "setgid" and modes:
                table.see(f"{name}: {what}: mode", "2777" if name == "mkdir" else "0777", "mode", path)
    for what, who, right in (("by a user", USER, "0777"), ("by root", ROOT, "2777")):
        path = f"setgid/bits-{who[0]}"
        table.act(
            f"create: with set-group-ID, {what} in a directory that has it", "ok", "create", path, 0o2777, who=who
        )
        table.see(f"create: with set-group-ID, {what}: mode", right, "mode", path)
    table.act("create: with all bits", "ok", "create", "all-bits", 0o7777)
    table.see("create: with all bits: mode", "7777", "mode", "all-bits")
    table.act("mkdir: with the sticky bit", "ok", "mkdir", "sticky", 0o1777)
    table.see("mkdir: with the sticky bit: mode", "1777", "mode", "sticky")
    make("directory", "parent", 0o777)
    table.act("mkdir: in a directory", "ok", "mkdir", "parent/child")
    table.see("mkdir: the directory has a link more", "3", "links", "parent")
    table.act("rmdir: in a directory", "ok", "rmdir", "parent/child")
    table.see("rmdir: the directory has a link less", "2", "links", "parent")
    for what, mode in (("character device", stat.S_IFCHR), ("block device", stat.S_IFBLK)):
        table.act(f"mknod: {what}, by a user", "EPERM", "mknod", "user-device", mode | 0o600, 1, 3, who=USER)
        name = what.replace(" ", "-")
        table.act(f"mknod: {what}, by root", "ok", "mknod", name, mode | 0o620, 1, 3)
        table.see(f"mknod: {what}: number", "1:3", "device", name)
        table.see(f"mknod: {what}: mode", "0620", "mode", name)
    table.act("mknod: FIFO, by a user", "ok", "mknod", "user-fifo", stat.S_IFIFO | 0o640, who=USER)
    table.see("mknod: FIFO, by a user: mode", "0640", "mode", "user-fifo")
    for length in (1, 255, 4095):
        table.act(f"symlink: to {length} bytes", "ok", "symlink", "t" * length, f"long-{length}")
        table.see(f"symlink: to {length} bytes: size", str(length), "size", f"long-{length}")
        table.act(f"readlink: of {length} bytes", "t" * length, "readlink", f"long-{length}")
    table.act("symlink: to 4096 bytes", "ENAMETOOLONG", "symlink", "t" * 4096, "long-4096")
    table.act("symlink: to nothing", "ENOENT", "symlink", "", "empty")
    odd = "a\nb\udcff\udc80 ä/../x"
    table.act("symlink: to any bytes", "ok", "symlink", odd, "odd")
    table.see("symlink: to any bytes is read", odd, "readlink", "odd")
    table.act("readlink: of a file", "EINVAL", "readlink", "all-bits")
    for number, name in enumerate((" ", "a\nb", "-", "ä" * 127, "\udcff\udcfe", "a\\b", "...", ".hidden", "x" * 255)):
        table.act(f"create: odd name {number}", "ok", "create", name)
        table.see(f"create: odd name {number} is there", "ok", "unlink", name)


def _opening(table: Table) -> None:
    create, exclusive = os.O_CREAT | os.O_RDWR, os.O_CREAT | os.O_EXCL | os.O_RDWR
    make("directory", "directory", 0o777)
    make("file", "file", 0o666)
    make("fifo", "fifo", 0o666)
    make("socket", "socket", 0o666)
    os.symlink("made", "dangling")
    os.symlink("file", "to-file")
    os.symlink("directory", "to-directory")
    for case, right, name, flags in (
        ("O_EXCL through a dangling link", "EEXIST", "dangling", exclusive),
        ("O_CREAT through a dangling link", "ok", "dangling", create),
        ("O_CREAT of a directory", "EISDIR", "directory", create),
        ("a directory for writing", "EISDIR", "directory", os.O_WRONLY),
        ("a directory for reading and writing", "EISDIR", "directory", os.O_RDWR),
        ("a directory with O_TRUNC", "EISDIR", "directory", os.O_RDWR | os.O_TRUNC),
        ("a link with O_NOFOLLOW", "ELOOP", "to-file", os.O_RDONLY | os.O_NOFOLLOW),
        ("a link with O_NOFOLLOW and O_CREAT", "ELOOP", "to-file", create | os.O_NOFOLLOW),
        ("a file with O_DIRECTORY", "ENOTDIR", "file", os.O_RDONLY | os.O_DIRECTORY),
        ("a link to a directory with O_DIRECTORY", "ok", "to-directory", os.O_RDONLY | os.O_DIRECTORY),
        ("a FIFO without a reader, for writing, O_NONBLOCK", "ENXIO", "fifo", os.O_WRONLY | os.O_NONBLOCK),
        ("a FIFO for reading, O_NONBLOCK", "ok", "fifo", os.O_RDONLY | os.O_NONBLOCK),
        ("a socket", "ENXIO", "socket", os.O_RDONLY),
    ):
        table.act(f"open: {case}", right, "open", name, flags)
    table.see("open: O_CREAT through a dangling link: its target", "file", "kind", "made")
    table.act("open: O_TRUNC", "ok", "open", "file", os.O_WRONLY | os.O_TRUNC)
    table.see("open: O_TRUNC is seen", "0", "size", "file")
    make("file", "mine", 0o644, USER)
    table.act("open: O_NOATIME, one's own", "ok", "open", "mine", os.O_RDONLY | os.O_NOATIME, who=USER)
    table.act("open: O_NOATIME, of another", "EPERM", "open", "mine", os.O_RDONLY | os.O_NOATIME, who=OTHER)
    for mode in (0o000, 0o444, 0o200):
        name = f"created-{mode:o}"
        table.act(
            f"open: writing what is created with {mode:04o}", "text", "write", name, exclusive, "text", mode, who=USER
        )
        table.see(f"open: what was created with {mode:04o}", f"{mode:04o}", "mode", name)
    table.act(
        "open: what was created with 0444, again for writing", "EACCES", "open", "created-444", os.O_RDWR, who=USER
    )
    append = os.O_WRONLY | os.O_APPEND
    make("file", "log", 0o666)
    table.act("open: O_APPEND", "ok", "write", "log", append, "-one", who=USER)
    table.act("open: O_APPEND again", "ok", "write", "log", append, "-two")
    table.see("open: O_APPEND is seen", "content-one-two", "text", "log")
    table.act("write: a descriptor for reading", "EBADF", "write", "log", os.O_RDONLY, "x")

    program = shutil.copy("/bin/sleep", "sleep")
    os.chmod(program, 0o777)
    with subprocess.Popen([os.path.abspath(program), "60"]) as running:
        try:
            table.act("open: a running program, for writing", "ETXTBSY", "open", program, os.O_WRONLY)
            table.act("truncate: a running program", "ETXTBSY", "truncate", program, 0)
            table.act("open: a running program, for reading", "ok", "open", program, os.O_RDONLY)
            table.act("rename: a running program", "ok", "rename", program, "renamed")
            table.act("unlink: a running program", "ok", "unlink", "renamed")
        finally:
            running.kill()
    program = shutil.copy("/bin/sleep", "sleep")
    os.chmod(program, 0o777)
    table.act("execve: a program", "ok", "run", program, who=USER)
    with open(program, "r+b"):
        table.act("execve: a program that is open for writing", "ETXTBSY", "run", program)
    os.chmod(program, 0o644)
    table.act("execve: a program that nobody may execute", "EACCES", "run", program)


def _rename(table: Table) -> None:
    for one in KINDS:
        for two in KINDS:
            make(one, "one")
            make(two, "two")
            right = "ok"
            if (one == "directory") != (two == "directory"):
                right = "ENOTDIR" if one == "directory" else "EISDIR"
            table.act(f"rename: {one} over {two}", right, "rename", "one", "two")
            table.see(f"rename: {one} over {two} is seen", one if right == "ok" else two, "kind", "two")
            table.see(f"rename: {one} over {two}: the old name", "ENOENT" if right == "ok" else one, "kind", "one")
            for name in ("one", "two"):
                if os.path.lexists(name):
                    _remove(name)
    make("directory", "d", 0o777)
    make("directory", "full", 0o777)
    make("file", "full/file", 0o666)
    make("file", "file", 0o666)
    os.link("file", "link")
    table.act("rename: over a directory that is not empty", "ENOTEMPTY", "rename", "d", "full")
    table.act("rename: into itself", "EINVAL", "rename", "d", "d/below")
    table.act("rename: over what it is in", "ENOTEMPTY", "rename", "full/file", "full")
    table.act("rename: the directory itself", "EBUSY", "rename", "d/.", "new")
    table.act("rename: the directory above", "EBUSY", "rename", "d/..", "new")
    table.act("rename: to itself", "ok", "rename", "file", "file")
    table.act("rename: one link over the other", "ok", "rename", "file", "link")
    table.see("rename: one link over the other leaves both", "2", "links", "file")
    table.act("rename: to another file system", "EXDEV", "rename", "file", f"{_ELSEWHERE}/kata-file-cases")
    make("directory", "from", 0o777)
    make("directory", "from/moved", 0o777)
    make("file", "from/moved/file")
    table.act("rename: a directory to another", "ok", "rename", "from/moved", "d/moved")
    table.see("rename: the old parent has a link less", "2", "links", "from")
    table.see("rename: the new parent has a link more", "3", "links", "d")
    table.see("rename: the parent of what was moved", "True", "same", "d/moved/..", "d")
    table.see("rename: what was moved with it", "content", "text", "d/moved/file")
    make("directory", "d/kept", 0o555)
    table.act(
        "rename: a directory that one may not write, elsewhere", "EACCES", "rename", "d/kept", "full/kept", who=USER
    )
    table.act("rename: a directory that one may not write, beside", "ok", "rename", "d/kept", "d/kept-2", who=USER)


def _sticky(table: Table) -> None:
    for directory_of, file_of in ((ROOT, ROOT), (ROOT, USER), (USER, ROOT), (USER, USER)):
        place = f"sticky-{directory_of[0]}-{file_of[0]}"
        make("directory", place, None, directory_of)
        os.chmod(place, 0o1777)
        right = "ok" if USER in (directory_of, file_of) else "EPERM"
        for kind in ("file", "directory", "fifo", "link"):
            what = f"{kind} of {file_of[0]} in a sticky directory of {directory_of[0]}"
            name = make(kind, f"{place}/{kind}", None, file_of)
            make(kind, "mine", None, USER)
            if kind == "directory":
                os.chmod(name, 0o777)
            table.act(f"rename: over a {what}", right, "rename", "mine", name, who=USER)
            if right == "ok":
                make(kind, f"{place}/{kind}-2", None, file_of)
                os.rename(f"{place}/{kind}-2", name)
            else:
                _remove("mine")
            table.act(f"rename: a {what}", right, "rename", name, f"{name}-3", who=USER)
            name = f"{name}-3" if right == "ok" else name
            table.act(f"remove: a {what}", right, "remove", name, who=USER)


def _rmdir(table: Table) -> None:
    make("directory", "full", 0o777)
    make("file", "full/file")
    for kind in _NOT_DIRECTORIES:
        make(kind, kind)
        table.act(f"rmdir: a {kind}", "ENOTDIR", "rmdir", kind)
    os.symlink("full", "to")
    make("directory", "empty")
    for case, right, name in (
        ("a link to a directory", "ENOTDIR", "to"),
        ("a directory that is not empty", "ENOTEMPTY", "full"),
        ("the directory itself", "EINVAL", "empty/."),
        ("the directory above", "ENOTEMPTY", "empty/.."),
        ("an empty directory", "ok", "empty"),
    ):
        table.act(f"rmdir: {case}", right, "rmdir", name)
    table.see("rmdir: an empty directory is gone", "ENOENT", "kind", "empty")
    make("directory", "open")
    table.act("open: in a directory that was removed", "ENOENT", "in removed", "open")
    make("directory", "links")
    table.act("rmdir: links of a directory that was removed", "0", "links of removed", "links")


def _truncate(table: Table) -> None:
    make("file", "file", 0o666)
    make("file", "kept", 0o444)
    for kind in ("directory", "fifo"):
        make(kind, kind, 0o777)
    os.symlink("file", "to")
    for case, right, name, size in (
        ("shorter", "ok", "file", 3),
        ("a negative size", "EINVAL", "file", -1),
        ("a directory", "EISDIR", "directory", 0),
        ("a FIFO", "EINVAL", "fifo", 0),
        ("longer, through a link", "ok", "to", 5),
    ):
        table.act(f"truncate: {case}", right, "truncate", name, size)
    table.see("truncate: what is there is zero", "con\0\0", "text", "file")
    table.act("truncate: what one may not write", "EACCES", "truncate", "kept", 0, who=USER)
    table.act("truncate: what one may write", "ok", "truncate", "file", 1, who=USER)
    table.see("truncate: what one may write is seen", "1", "size", "file")
    table.act("truncate: beyond 4 GiB", "ok", "truncate", "file", 5 << 30)
    table.see("truncate: beyond 4 GiB is seen", str(5 << 30), "size", "file")
    table.act("ftruncate", "ok", "by descriptor", "file", os.O_RDWR, "ftruncate", 2)
    table.see("ftruncate is seen", "2", "size", "file")
    table.act("ftruncate: a descriptor for reading", "EINVAL", "by descriptor", "file", os.O_RDONLY, "ftruncate", 0)
    table.act("ftruncate: a negative size", "EINVAL", "by descriptor", "file", os.O_RDWR, "ftruncate", -1)
    for call, arguments in (
        ("truncate", ("truncate", "bits", 3)),
        ("ftruncate", ("by descriptor", "bits", os.O_RDWR, "ftruncate", 3)),
        ("write", ("write", "bits", os.O_WRONLY, "x")),
    ):
        for what, who, right in (("by a user", USER, "0777"), ("by root", ROOT, "6777")):
            make("file", "bits", 0o6777)
            table.act(f"{call}: a file with set-ID bits, {what}", "ok", *arguments, who=who)
            table.see(f"{call}: set-ID bits, {what}", right, "mode", "bits")
            os.unlink("bits")
        make("file", "bits", 0o2666)
        table.act(f"{call}: set-group-ID that nobody may execute, by a user", "ok", *arguments, who=USER)
        table.see(f"{call}: set-group-ID that nobody may execute is seen", "0666", "mode", "bits")
        os.unlink("bits")


def _unlink(table: Table) -> None:
    for kind in _NOT_DIRECTORIES:
        make(kind, kind)
        table.act(f"unlink: a {kind}", "ok", "unlink", kind)
        table.see(f"unlink: a {kind} is gone", "ENOENT", "kind", kind)
    make("directory", "directory")
    table.act("unlink: a directory", "EISDIR", "unlink", "directory")
    table.act("unlink: by a user, where it may write", "ok", "unlink", make("file", "of-root", 0o600), who=USER)
    make("file", "removed")
    table.act("unlink: links of an open file", "0", "links of removed", "removed")


def _utimensat(table: Table) -> None:
    make("file", "mine", 0o600, USER)
    make("file", "shared", 0o666)
    make("file", "kept", 0o644)
    at, then = [1_000_000_000, 0], [1_500_000_000, 0]
    table.act("utimensat: one's own file", "ok", "times", "mine", at, then, who=USER)
    table.see("utimensat: one's own file is seen", "1000000000.000000000 1500000000.000000000", "times of", "mine")
    table.act("utimensat: only one of both", "ok", "times", "mine", [0, _OMIT], [1_600_000_000, 0], who=USER)
    table.see("utimensat: only one of both is seen", "1000000000.000000000 1600000000.000000000", "times of", "mine")
    table.act("utimensat: a time, of what one may write", "EPERM", "times", "shared", at, then, who=USER)
    table.act("utimensat: now, of what one may write", "ok", "touch", "shared", who=USER)
    table.see("utimensat: now, of what one may write, is now", "True", "recent", "shared")
    table.act("utimensat: only one of both, now", "ok", "times", "mine", [0, _NOW], [0, _OMIT], who=USER)
    table.see("utimensat: only one of both, now, is seen", "1600000000", "modified", "mine")
    table.act("utimensat: now, of what one may not write", "EACCES", "touch", "kept", who=USER)
    table.act(
        "utimensat: now and not, of what one may write", "EPERM", "times", "shared", [0, _NOW], [0, _OMIT], who=USER
    )
    table.act("utimensat: neither, of what one may not write", "ok", "times", "kept", [0, _OMIT], [0, _OMIT], who=USER)
    table.act("utimensat: nanoseconds", "ok", "times", "mine", [1, 7], [2, 999_999_999])
    table.see("utimensat: nanoseconds are seen", "1.000000007 2.999999999", "times of", "mine")
    for what, seconds in (("before 1970", -1_000_000), ("after 2038", 4_000_000_000), ("after 2106", 5_000_000_000)):
        table.act(f"utimensat: {what}", "ok", "times", "mine", [seconds, 0], [seconds, 0])
        table.see(f"utimensat: {what} is seen", f"{seconds}.000000000 {seconds}.000000000", "times of", "mine")
    make("link", "link")
    table.act("utimensat: of a link", "ok", "times", "link", at, then, _AT_SYMLINK_NOFOLLOW)
    table.see("utimensat: of a link is seen", "1000000000.000000000 1500000000.000000000", "times of", "link")
    for kind in ("directory", "fifo", "socket"):
        make(kind, kind)
        table.act(f"utimensat: {kind}", "ok", "times", kind, at, then)
        table.see(f"utimensat: {kind} is seen", "1000000000.000000000 1500000000.000000000", "times of", kind)


#: What is done to x and y in a directory, as whom, what is said, and whose times change then: m(odification), c(hange).
_TIMES: dict[str, tuple[tuple[Any, ...], Who, str]] = {
    "chmod": (("chmod", "x", 0o600), ROOT, "ok x:c"),
    "chmod that fails": (("chmod", "x", 0o600), USER, "EPERM"),
    "chown": (("chown", "x", 1, 1), ROOT, "ok x:c"),
    "chown that fails": (("chown", "x", 1, 1), USER, "EPERM"),
    "link": (("link", "x", "new"), ROOT, "ok x:c .:mc"),
    "link that fails": (("link", "x", "y"), ROOT, "EEXIST"),
    "create": (("create", "new"), ROOT, "ok .:mc"),
    "open of what is there, O_CREAT": (("create", "x"), ROOT, "ok"),
    "open with O_TRUNC": (("open", "x", os.O_WRONLY | os.O_TRUNC), ROOT, "ok x:mc"),
    "mkdir": (("mkdir", "new"), ROOT, "ok .:mc"),
    "mkdir that fails": (("mkdir", "x"), ROOT, "EEXIST"),
    "mkfifo": (("mkfifo", "new"), ROOT, "ok .:mc"),
    "symlink": (("symlink", "x", "new"), ROOT, "ok .:mc"),
    "rename": (("rename", "y", "new"), ROOT, "ok .:mc"),
    "rename to another directory": (("rename", "y", "d/new"), ROOT, "ok d:mc .:mc"),
    "rename over a link of x": (("rename", "y", "also-x"), ROOT, "ok x:c .:mc"),
    "rename that fails": (("rename", "y", "d"), ROOT, "EISDIR"),
    "rmdir": (("rmdir", "d"), ROOT, "ok .:mc"),
    "truncate": (("truncate", "x", 3), ROOT, "ok x:mc"),
    "truncate that fails": (("truncate", "x", -1), ROOT, "EINVAL"),
    "ftruncate": (("by descriptor", "x", os.O_RDWR, "ftruncate", 3), ROOT, "ok x:mc"),
    "unlink of a link of x": (("unlink", "also-x"), ROOT, "ok x:c .:mc"),
    "unlink that fails": (("unlink", "d"), ROOT, "EISDIR"),
    "utimensat": (("times", "x", [1, 0], [2, 0]), ROOT, "ok x:mc"),
    "utimensat that fails": (("times", "x", [1, 0], [2, 0]), USER, "EPERM"),
    "write": (("write", "x", os.O_WRONLY, "text"), ROOT, "ok x:mc"),
    "write of nothing": (("write", "x", os.O_WRONLY, ""), ROOT, "ok"),
    "write by a mapping": (("by mapping", "x"), ROOT, "ok x:mc"),
    "setxattr": (("setxattr", "x", "user.kata", "value"), ROOT, "ok x:c"),
}


def _times(table: Table) -> None:
    for number in range(len(_TIMES)):
        make("directory", f"{number}", 0o777)
        make("file", f"{number}/x", 0o666)
        os.link(f"{number}/x", f"{number}/also-x")
        make("file", f"{number}/y", 0o666)
        make("directory", f"{number}/d", 0o777)
    before = [_all_times(f"{number}") for number in range(len(_TIMES))]
    # Some file systems know whole seconds only.
    time.sleep(1.1)
    section = os.path.basename(os.getcwd())
    for number, (case, ((call, *arguments), who, right)) in enumerate(_TIMES.items()):
        table.enter(f"{section}/{number}")
        said = [table.do(call, *arguments, who=who)]
        after = _all_times(".")
        for name, then in before[number].items():
            letters = "".join(
                letter for letter, old, new in zip("mc", then, after.get(name, then), strict=True) if old != new
            )
            said += [f"{name}:{letters}"] if letters else []
        table.say(f"times after {case}", right, " ".join(said))


def _all_times(place: str) -> dict[str, tuple[int, int]]:
    seen = {}
    for name in ("x", "d", "."):
        if os.path.lexists(f"{place}/{name}"):
            info = os.lstat(f"{place}/{name}")
            seen[name] = info.st_mtime_ns, info.st_ctime_ns
    return seen


def _read_only(table: Table) -> None:
    place = table.read_only
    if not place:
        return
    file, directory, new = f"{place}/file", f"{place}/directory", f"{place}/new"
    calls: dict[str, tuple[Any, ...]] = {
        "create": ("create", new),
        "open for writing": ("open", file, os.O_WRONLY),
        "open with O_TRUNC": ("open", file, os.O_RDONLY | os.O_TRUNC),
        "mkdir": ("mkdir", new),
        "mkfifo": ("mkfifo", new),
        "symlink": ("symlink", "nowhere", new),
        "link": ("link", file, new),
        "rename": ("rename", file, new),
        "unlink": ("unlink", file),
        "rmdir": ("rmdir", directory),
        "chmod": ("chmod", file, 0o600),
        "chown": ("chown", file, 1, 1),
        "lchown": ("lchown", f"{place}/link", 1, 1),
        "truncate": ("truncate", file, 0),
        "utimensat": ("touch", file),
        "setxattr": ("setxattr", file, "user.kata", "value"),
    }
    for case, (call, *arguments) in calls.items():
        table.act(f"read-only: {case}", "EROFS", call, *arguments)
    table.act("read-only: open for reading", "ok", "open", file, os.O_RDONLY)
    table.act("read-only: where something is", "EEXIST", "mkdir", directory)
    table.act("read-only: what is not there", "EROFS", "unlink", new)
    table.act("read-only: what is read", "content", "text", file)


SECTIONS = (
    *(_paths, _permissions, _chmod, _chown, _link, _making, _opening, _rename, _sticky, _rmdir, _truncate, _unlink),
    *(_utimensat, _times, _read_only),
)


def run(table: Table) -> None:
    """Run each section in a directory of its own; one that cannot go on is a case as well."""
    signal.signal(signal.SIGALRM, stuck)
    for section in SECTIONS:
        name = section.__name__.strip("_")
        try:
            signal.alarm(2 * CALL_TIMEOUT_S)
            table.enter(".")
            make("directory", name, 0o777)
            table.enter(name)
            section(table)
        except OSError as error:
            table.say(f"{name}: all of it", "ok", f"{errno.errorcode.get(error.errno or 0)} {error.filename}")
        finally:
            signal.alarm(0)


def main(directory: str, other: str = "", *more: str) -> None:
    if directory == "--serve":
        serve_at(more[0], other, globals())
        return
    os.makedirs(directory, exist_ok=True)
    os.umask(0)
    table = Table(directory, second(other, globals()) if other else None, *more)
    run(table)
    told(table.cases, other)


if __name__ == "__main__":
    main(*sys.argv[1:])
