"""The sysctls of a network namespace.

Their names have slashes, as the files in /proc/sys have: an interface's name may have dots. Those of an interface are
in directories that have its name.

Source: the kernel's Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

import os

_ROOT = "/proc/sys/"
#: Connection tracking is a module that the other side may not have loaded; its settings are the packet filter's.
_LEFT_OUT = frozenset(("net/netfilter", "net/bridge"))
_MAX_VALUE = 4096


def read_all(tree: str = "net") -> dict[str, str]:
    """The sysctls of the calling thread's network namespace that can be written and read.

    Args:
        tree: only those in this directory.
    """
    found: dict[str, str] = {}
    try:
        entries = [*os.scandir(_ROOT + tree)]
    except FileNotFoundError:
        return found
    for entry in entries:
        name = f"{tree}/{entry.name}"
        if entry.is_dir():
            if name not in _LEFT_OUT:
                found |= read_all(name)
            continue
        try:
            fd = os.open(entry.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            found[name] = os.read(fd, _MAX_VALUE).decode(errors="replace").strip()
        except OSError:
            continue  # only for writing
        finally:
            os.close(fd)
    return found


def write(name: str, value: str) -> None:
    """Set one in the calling thread's network namespace.

    Raises:
        ValueError: it is none of a network namespace's.
        OSError: there is none of that name, or the kernel refuses the value.
    """
    first, *others = name.split("/")
    if first != "net" or not others or {"", ".", ".."} & {*others} or "\0" in name:
        raise ValueError(f"invalid name of a network sysctl {name!r}")
    fd = os.open(_ROOT + name, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
