"""cgroup v2 files: reading them, freezing and killing a whole group.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst. A file that does not exist (controller absent, older
kernel) reads as nothing, because which files there are differs between kernels and is no error.
"""

from __future__ import annotations

import os

UNLIMITED = (1 << 64) - 1


def read(directory: str, name: str) -> str:
    """A file's text, or "" if the kernel does not offer it."""
    try:
        with open(os.path.join(directory, name), encoding="ascii") as file:
            return file.read()
    except (FileNotFoundError, OSError) as error:
        # ENODEV: the group went away between open and read.
        if isinstance(error, FileNotFoundError) or error.errno == 19:
            return ""
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

    Raises:
        OSError: as the kernel answers.
    """
    fd = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def enable_controllers(directory: str) -> None:
    """Offer to the children of `directory` every controller that it has itself."""
    for controller in read(directory, "cgroup.controllers").split():
        try:
            write(directory, "cgroup.subtree_control", f"+{controller}")
        except OSError:
            # One controller that cannot be delegated (cpu with real-time processes) must not cost the others.
            continue


def kill(directory: str) -> None:
    """Kill every process in the group and below, atomically (cgroup.kill, Linux 5.14)."""
    write(directory, "cgroup.kill", "1")


def set_frozen(directory: str, frozen: bool) -> None:
    """Ask for the group to be frozen or thawed; `is_frozen` tells when it has happened."""
    write(directory, "cgroup.freeze", "1" if frozen else "0")


def is_frozen(directory: str) -> bool:
    """Whether every process of the group has stopped."""
    return read_flat(directory, "cgroup.events").get("frozen") == 1
