"""Leave a pod's network namespace as it was found. The shim's `delete` uses this: it imports little."""

from __future__ import annotations

import os

from kata.linux import rtnetlink
from kata.linux.namespaces import CLONE_NEWNET, inside
from kata.linux.netlink import Netlink


def detach(path: str, inode: int, index: int) -> None:
    """Take filter and limit from an interface of the namespace that was at `path`; another one there is left alone.

    Raises:
        OSError: the kernel refuses.
    """
    if (netlink := _enter(path, inode)) is not None:
        with netlink:
            rtnetlink.remove_redirect(netlink, index)
            rtnetlink.remove_limit(netlink, index)


def remove(path: str, inode: int, index: int) -> None:
    """Remove an interface that was made in the namespace that was at `path`. As `detach`."""
    if (netlink := _enter(path, inode)) is not None:
        with netlink:
            rtnetlink.remove_link(netlink, index)


def _enter(path: str, inode: int) -> Netlink | None:
    """A socket in the namespace, or None if it is gone, with all that was in it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if os.fstat(fd).st_ino != inode:
            return None
        with inside(fd, CLONE_NEWNET):
            return Netlink()
    finally:
        os.close(fd)
