"""Files that a reader sees whole, in their old or their new state: written beside, then renamed (rename(2)).

The shim's `start` imports this file, so it imports next to nothing.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import PathLike


def write(path: str | PathLike[str], content: str | bytes, *, mode: int = 0o644) -> None:
    """Put a file in its place, whatever was there.

    Atomic for readers and for a killed writer, who leaves the old file and at most `.NAME.PID` beside it; whoever
    lists such a directory passes hidden names over. Not durable: after a power failure the file may be empty or old.

    Args:
        path: of the file.
        content: a string is written as UTF-8.
        mode: permissions, less the umask.

    Raises:
        OSError: it cannot be written, on a full disk for instance; the old file is as it was, and nothing is beside.
    """
    path = os.fspath(path)
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{os.getpid()}")
    data = content.encode() if isinstance(content, str) else content
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def sync_directory(directory: str | PathLike[str]) -> None:
    """Have the names in a directory survive a power failure (fsync(2)).

    Raises:
        OSError: the directory cannot be opened, or the disk fails.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
