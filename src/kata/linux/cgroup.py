"""cgroup v2 files: reading and writing them, freezing and killing a whole cgroup.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst. A file that does not exist (controller absent, older
kernel) reads as empty, because the set of files differs between kernels.
"""

from __future__ import annotations

import errno
import os

UNLIMITED = (1 << 64) - 1


def read(directory: str, name: str) -> str:
    """A file's text, or "" if the kernel does not offer it.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with open(os.path.join(directory, name), encoding="ascii") as file:
            return file.read()
    except FileNotFoundError:
        return ""
    except OSError as error:
        if error.errno == errno.ENODEV:
            return ""  # the cgroup was removed between open and read
        raise


def read_value(directory: str, name: str) -> int:
    """A single number; "max" reads as UNLIMITED, an absent file as 0."""
    text = read(directory, name).strip()
    return UNLIMITED if text == "max" else int(text or 0)


def read_flat(directory: str, name: str) -> dict[str, int]:
    """A flat keyed file (cpu.stat, memory.events): key to number."""
    pairs = (line.split() for line in read(directory, name).splitlines())
    return {key: int(value) for key, value in pairs}


def read_nested(directory: str, name: str) -> dict[str, dict[str, int]]:
    """A nested keyed file (io.stat): first column to {key: number}."""
    table: dict[str, dict[str, int]] = {}
    for line in read(directory, name).splitlines():
        head, *pairs = line.split()
        table[head] = {key: int(value) for key, _, value in (pair.partition("=") for pair in pairs) if value.isdigit()}
    return table


def write(directory: str, name: str, text: str) -> None:
    """Write a control file.

    Args:
        directory: the cgroup's.
        name: of the file.
        text: its new content.

    Raises:
        OSError: the kernel refuses.
    """
    fd = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def enable_controllers(directory: str) -> None:
    """Enable in the children of a cgroup every controller that it has itself (cgroup.subtree_control)."""
    for controller in read(directory, "cgroup.controllers").split():
        try:
            write(directory, "cgroup.subtree_control", f"+{controller}")
        except OSError:
            # One controller that cannot be enabled (cpu with real-time processes) must not prevent the others.
            continue


def kill(directory: str) -> None:
    """Kill every process in the cgroup and below, atomically (cgroup.kill, Linux 5.14). Raises OSError."""
    write(directory, "cgroup.kill", "1")


def processes(directory: str) -> list[int]:
    """Ids of the processes in the cgroup and below (cgroup.procs)."""
    directories = (path for path, _, _ in os.walk(directory))
    return [int(pid) for path in directories for pid in read(path, "cgroup.procs").split()]


def set_frozen(directory: str, frozen: bool) -> None:
    """Ask for the cgroup to be frozen or thawed; `is_frozen` tells when it has happened. Raises OSError."""
    write(directory, "cgroup.freeze", "1" if frozen else "0")


def is_frozen(directory: str) -> bool:
    """Whether every process of the cgroup is frozen."""
    return read_flat(directory, "cgroup.events").get("frozen") == 1
