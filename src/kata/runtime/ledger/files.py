"""Files and directory trees, removed so that nothing else can be: no symbolic link is followed, no mount entered."""

from __future__ import annotations

import errno
import itertools
import os

from kata.linux import mountinfo


def unlink(path: str) -> None:
    """Remove a file, socket or symbolic link. Idempotent.

    Raises:
        OSError: as unlink(2), but for ENOENT.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def remove_tree(directory: str) -> None:
    """Remove a directory tree, and never anything that is mounted in it. Idempotent.

    What a container made may be nested deeper than a path can name, so nothing here descends: directories found in a
    directory move up to the top, one after the other, until there is only one level. Symbolic links are not followed.

    Raises:
        OSError: EBUSY if something is mounted beneath, else what the kernel says.
    """
    directory = os.path.realpath(directory)
    if points := mountinfo.points_below(directory):
        raise OSError(errno.EBUSY, f"{points[-1]} is still mounted")
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        top = os.open(directory, flags)
    except FileNotFoundError:
        return
    try:
        _remove_content(top, flags)
    finally:
        os.close(top)
    os.rmdir(directory)


def _remove_content(top: int, flags: int) -> None:
    waiting, files = _entries(top)
    taken = {*waiting, *files}
    names = (name for name in map("removed-{}".format, itertools.count()) if name not in taken)
    while waiting:
        directory = waiting.pop()
        child = os.open(directory, flags, dir_fd=top)
        try:
            deeper, inside = _entries(child)
            for name in inside:
                os.unlink(name, dir_fd=child)
            for name in deeper:
                waiting.append(next(names))
                os.rename(name, waiting[-1], src_dir_fd=child, dst_dir_fd=top)
        finally:
            os.close(child)
        os.rmdir(directory, dir_fd=top)
    # Last, because a sandbox's ledger is among them.
    for name in files:
        os.unlink(name, dir_fd=top)


def _entries(fd: int) -> tuple[list[str], list[str]]:
    """Names of the directories and of everything else in a directory."""
    directories: list[str] = []
    others: list[str] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            (directories if entry.is_dir(follow_symlinks=False) else others).append(entry.name)
    return directories, others
