"""A directory tree of untrusted content: every path is resolved beneath its root, as if in a chroot.

Parents are opened with openat2(2) and RESOLVE_IN_ROOT, so that symbolic links in the tree lead to places in the tree;
the last component of a path is never followed. Not safe against other processes that change the tree meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Set
from dataclasses import dataclass
from typing import Self

from kata.archive.tar import shown
from kata.errors import InvalidArgument
from kata.linux.openat2 import openat2

#: Far more than real images have, and few enough for a descriptor for each level.
MAX_DEPTH = 256

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_NOTHING: frozenset[tuple[int, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Place:
    """A name in an open directory, for the *at() system calls.

    Attributes:
        fd: the directory; it belongs to the tree and is valid until the tree's next `place` or `remove`.
        inode: the directory's; with the name it identifies the place, however its parent was reached.
        name: of the entry, which need not exist.
    """

    fd: int
    inode: int
    name: str

    @property
    def key(self) -> tuple[int, str]:
        """Identifies the place."""
        return self.inode, self.name

    def mode(self) -> int | None:
        """The mode (st_mode) of the entry; None if there is none."""
        try:
            return os.lstat(self.name, dir_fd=self.fd).st_mode
        except FileNotFoundError:
            return None


class Tree:
    """The tree beneath a directory. A context manager that owns its descriptors."""

    def __init__(self, root: str) -> None:
        self.root = os.open(root, _DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._root_depth = _depth(self.root)
        # Archives list a directory's files together, so one open parent saves most of the work.
        self._parent: tuple[str, int, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()
        os.close(self.root)

    def place(self, name: str, *, create: bool = True) -> Place | None:
        """The place of a path; None for the root itself.

        Args:
            name: the path.
            create: make missing parents; otherwise they are a FileNotFoundError.

        Raises:
            InvalidArgument: the path contains "..", or is too deep.
            OSError: a parent is not a directory, or a dangling or looping link.
        """  # noqa: DOC501 - `_too_deep` makes an InvalidArgument
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise InvalidArgument(f"path {shown(name)} contains '..'")
        if len(parts) > MAX_DEPTH:
            raise _too_deep(name)
        if not parts:
            return None
        fd, inode = self._open_parent("/".join(parts[:-1]), create)
        return Place(fd, inode, parts[-1])

    def remove(self, place: Place, keep: Set[tuple[int, str]] = _NOTHING) -> None:
        """Remove a place and everything beneath it, except places in `keep` and their parents. Raises OSError."""
        _remove(place.fd, place.inode, place.name, keep)
        # The path of the open parent may lead elsewhere now.
        self._forget()

    def empty(self, name: str, keep: Set[tuple[int, str]]) -> None:
        """Remove the content of a directory.

        Args:
            name: its path; symbolic links are followed.
            keep: keys of places that stay, with their parents.

        Raises:
            InvalidArgument: the path contains "..".
            OSError: it is not a directory, or the disk fails.
        """
        if ".." in name.split("/"):
            raise InvalidArgument(f"path {shown(name)} contains '..'")
        fd = openat2(self.root, name or ".", _DIRECTORY)
        try:
            _remove_children(fd, keep)
        finally:
            os.close(fd)
        self._forget()

    def _open_parent(self, path: str, create: bool) -> tuple[int, int]:
        if self._parent is None or self._parent[0] != path:
            fd = self._open(path, create)
            try:
                if _depth(fd) - self._root_depth >= MAX_DEPTH:
                    raise _too_deep(path)
                inode = os.fstat(fd).st_ino
            except BaseException:
                os.close(fd)
                raise
            self._forget()
            self._parent = path, fd, inode
        return self._parent[1:]

    def _open(self, path: str, create: bool) -> int:
        try:
            return openat2(self.root, path or ".", _DIRECTORY)
        except FileNotFoundError:
            if not create:
                raise
        above, _, name = path.rpartition("/")
        fd = self._open(above, create)
        try:
            os.mkdir(name, dir_fd=fd)
            os.chmod(name, 0o755, dir_fd=fd)  # whatever the umask is
        finally:
            os.close(fd)
        return openat2(self.root, path, _DIRECTORY)

    def _forget(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None


def _depth(fd: int) -> int:
    """How deep a directory really is: symbolic links on the way to it may have hidden that."""
    return os.readlink(f"/proc/self/fd/{fd}").rstrip("/").count("/")


def _too_deep(path: str) -> InvalidArgument:
    return InvalidArgument(f"path {shown(path)} is more than {MAX_DEPTH} directories deep")


def _remove(dir_fd: int, inode: int, name: str, keep: Set[tuple[int, str]]) -> None:
    try:
        mode = os.lstat(name, dir_fd=dir_fd).st_mode
    except FileNotFoundError:
        return
    kept = (inode, name) in keep
    if not stat.S_ISDIR(mode):
        if not kept:
            os.unlink(name, dir_fd=dir_fd)
        return
    fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        _remove_children(fd, keep)
    finally:
        os.close(fd)
    if not kept:
        try:
            os.rmdir(name, dir_fd=dir_fd)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or not keep:
                raise


def _remove_children(fd: int, keep: Set[tuple[int, str]]) -> None:
    inode = os.fstat(fd).st_ino
    for child in os.listdir(fd):
        _remove(fd, inode, child, keep)
