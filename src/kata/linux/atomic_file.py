"""Files that a reader sees whole, in their old or their new state: written beside, then renamed (rename(2)).

The shim's `start` imports this file, so it imports next to nothing.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import PathLike
    from typing import BinaryIO


class Replacement:
    """A file that is put in its place, whatever was there, once the block that writes it has ended without an error.

    Atomic for readers and for a killed writer, who leaves the old file and at most `.NAME.PID` beside it; whoever
    lists such a directory passes hidden names over. Not durable: after a power failure the file may be empty or old.
    After an error, of a full disk for instance, the old file is as it was, and nothing is beside it.

    Args:
        path: of the file.
        mode: permissions, less the umask.
    """

    def __init__(self, path: str | PathLike[str], *, mode: int = 0o644) -> None:
        self._path = os.fspath(path)
        directory, name = os.path.split(self._path)
        self._temporary = os.path.join(directory, f".{name}.{os.getpid()}")
        self._mode = mode

    def __enter__(self) -> BinaryIO:
        """Open what is to be written. Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = open(os.open(self._temporary, flags, self._mode), "wb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Put the file in its place, or remove it. Raises OSError."""
        try:
            self._file.close()
            if kind is None:
                os.rename(self._temporary, self._path)
        except BaseException:
            os.unlink(self._temporary)
            raise
        if kind is not None:
            os.unlink(self._temporary)


def write(path: str | PathLike[str], content: str | bytes, *, mode: int = 0o644) -> None:
    """Put a whole file in its place; see `Replacement`.

    Args:
        path: of the file.
        content: a string is written as UTF-8.
        mode: permissions, less the umask.

    Raises:
        OSError: it cannot be written.
    """
    with Replacement(path, mode=mode) as file:
        file.write(content.encode() if isinstance(content, str) else content)


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
