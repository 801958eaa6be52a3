"""Restore a pod's network namespace. The shim's `delete` uses this, so it imports little."""

from __future__ import annotations

import os

from kata.linux import rtnetlink
from kata.linux.namespaces import CLONE_NEWNET, inside
from kata.linux.netlink import Netlink


def release_filter(entry: str) -> None:
    """`remove_filter` by the ledger's entry, "INODE INDEX PATH".

    Raises:
        OSError: the kernel refuses.
    """
    remove_filter(*_parsed(entry))


def release_interface(entry: str) -> None:
    """Remove an interface that was made for a sandbox, by the ledger's entry, "INODE INDEX PATH". Idempotent.

    Raises:
        OSError: the kernel refuses.
    """
    path, inode, index = _parsed(entry)
    if (netlink := _enter(path, inode)) is not None:
        with netlink:
            rtnetlink.remove_link(netlink, index)


def remove_filter(path: str, inode: int, index: int) -> None:
    """Remove filter and rate limit of an interface. Idempotent.

    Args:
        path: where the network namespace was.
        inode: the namespace's. Another namespace at the path is not changed.
        index: the interface's.

    Raises:
        OSError: the kernel refuses.
    """
    if (netlink := _enter(path, inode)) is not None:
        with netlink:
            rtnetlink.remove_redirect(netlink, index)
            rtnetlink.remove_limit(netlink, index)


def _parsed(entry: str) -> tuple[str, int, int]:
    inode, index, path = entry.split(" ", 2)
    return path, int(inode), int(index)


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
