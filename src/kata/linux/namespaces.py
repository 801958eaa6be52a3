"""unshare(2) and setns(2), and namespaces that outlive their processes.

Python's os module has both calls only from 3.12. Sources: namespaces(7), unshare(2), setns(2).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from kata.linux.libc import LIBC, check
from kata.linux.mount import bind, umount

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

FLAGS = {
    "cgroup": CLONE_NEWCGROUP,
    "uts": CLONE_NEWUTS,
    "ipc": CLONE_NEWIPC,
    "pid": CLONE_NEWPID,
    "net": CLONE_NEWNET,
}


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces (CLONE_NEW*) or a root directory of its own (CLONE_FS). Raises OSError."""
    check(LIBC.unshare(flags), "unshare")


def become_root() -> None:
    """Make this process root of a new user namespace that has no other user or group; it must have one thread.

    Raises:
        OSError: the kernel does not let this user have one (user_namespaces(7)).
    """
    maps = {"setgroups": "deny", "uid_map": f"0 {os.geteuid()} 1", "gid_map": f"0 {os.getegid()} 1"}
    unshare(CLONE_NEWUSER)
    for name, text in maps.items():
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def setns(fd: int, kind: int = 0) -> None:
    """Move the calling thread into the namespace that `fd` refers to.

    Args:
        fd: an open file of it.
        kind: the CLONE_NEW* that it must be; 0 for any.

    Raises:
        OSError: it is not a namespace of that type, or this process may not enter it.
    """
    check(LIBC.setns(fd, kind), "setns")


@contextmanager
def inside(namespace: int, kind: int) -> Iterator[None]:
    """Move the calling thread into another namespace within the block.

    Args:
        namespace: an open file of it.
        kind: one of CLONE_NEW*.

    Raises:
        OSError: it is not a namespace of that type, or this process may not enter it.
    """
    name = next(name for name, flag in FLAGS.items() if flag == kind)
    home = os.open(f"/proc/thread-self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(namespace, kind)
        try:
            yield
        finally:
            setns(home, kind)
    finally:
        os.close(home)


@contextmanager
def inside_new(*kinds: str) -> Iterator[None]:
    """Move the calling thread into new namespaces within the block; of a pid namespace, its children are in it only.

    Args:
        *kinds: types ("cgroup", "uts", "ipc", "pid", "net").

    Raises:
        OSError: the kernel refuses.
    """
    flags = 0
    home: dict[int, int] = {}
    try:
        for kind in kinds:
            flags |= FLAGS[kind]
            home[FLAGS[kind]] = os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        unshare(flags)
        try:
            yield
        finally:
            for flag, fd in home.items():
                setns(fd, flag)
    finally:
        for fd in home.values():
            os.close(fd)


@contextmanager
def inside_new_mounts() -> Iterator[None]:
    """Move the calling thread into a copy of its mount namespace within the block.

    Afterwards it has the root and the working directory that it had, no longer together with other threads.

    Raises:
        OSError: the kernel refuses.
    """
    fds: list[int] = []
    try:
        fds.append(os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
        fds += (os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in ("/", "."))
        unshare(CLONE_NEWNS)
        try:
            yield
        finally:
            home, root, directory = fds
            setns(home, CLONE_NEWNS)
            os.fchdir(root)
            os.chroot(".")
            os.fchdir(directory)
    finally:
        for fd in fds:
            os.close(fd)


def pin(source: str, target: str) -> None:
    """Keep a namespace alive, without a process in it, as a bind-mounted file (namespaces(7)).

    Args:
        source: the namespace, a file in /proc/PID/ns.
        target: the file; made if it is missing, and removed again after a failure.

    Raises:
        OSError: the file cannot be made, or the kernel refuses to mount on it.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
    try:
        bind(source, target, 0)
    except OSError:
        os.unlink(target)
        raise


def unpin(target: str) -> None:
    """Undo `pin`. Raises OSError."""
    umount(target)
    os.unlink(target)


def make_pinned(targets: Mapping[str, str], setup: Callable[[], None] | None = None) -> None:
    """Make new namespaces and pin them; the caller stays in its own.

    Args:
        targets: type ("uts", "ipc") to the file that pins it.
        setup: called inside the new namespaces.

    Raises:
        OSError: the kernel refuses; nothing stays pinned then.
    """
    pinned: list[str] = []
    try:
        with inside_new(*targets):
            if setup:
                setup()
            for kind, target in targets.items():
                pin(f"/proc/thread-self/ns/{kind}", target)
                pinned.append(target)
    except BaseException:
        for target in pinned:
            unpin(target)
        raise


def new_network() -> int:
    """A new network namespace, as a descriptor that holds it; the caller stays in its own. Raises OSError."""
    with inside_new("net"):
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
