"""The files of an image by name, in a tar archive or in a directory."""

from __future__ import annotations

import io
import os
import posixpath
import stat
from pathlib import Path
from typing import BinaryIO, Protocol

from kata.archive.tar import EntryType, TarReader, shown
from kata.errors import InvalidArgument, KataError, NotFound, PermissionDenied
from kata.linux.openat2 import openat2

_MAX_FILES = 10_000
_MAX_LINKS = 8


class Source(Protocol):
    """The files of an image by name."""

    label: str

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""

    def open(self, name: str) -> BinaryIO:
        """A new stream, which the caller closes. Raises InvalidArgument if there is no such file."""

    def close(self) -> None:
        """Close the archive or directory."""


def open_source(path: Path) -> Source:
    """Open the tar archive or directory at `path`.

    Raises:
        NotFound, PermissionDenied: it cannot be opened.
        InvalidArgument: it is neither a tar archive nor a directory.
    """
    label = f"image {path}"
    try:
        # O_NONBLOCK: opening a FIFO would wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        kind = PermissionDenied if isinstance(error, PermissionError) else NotFound
        raise kind(f"cannot open {label}: {(error.strerror or str(error)).lower()}") from error
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            return _Directory(fd, label)
        if not stat.S_ISREG(mode):
            raise InvalidArgument(f"{label} is neither a file nor a directory")
        return _Archive(fd, label)
    except BaseException:
        os.close(fd)
        raise


def _missing(label: str, name: str) -> KataError:
    return InvalidArgument(f"{label}: file {shown(name)} is missing")


class _Directory:
    def __init__(self, fd: int, label: str) -> None:
        self._fd = fd
        self.label = label

    def has(self, name: str) -> bool:
        try:
            self.open(name).close()
        except InvalidArgument:
            return False
        return True

    def open(self, name: str) -> BinaryIO:
        try:
            fd = openat2(self._fd, name.partition("\0")[0], os.O_RDONLY | os.O_NONBLOCK)
        except (OSError, UnicodeError) as error:
            raise _missing(self.label, name) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise InvalidArgument(f"{self.label}: {shown(name)} is not a file")
        return open(fd, "rb")

    def close(self) -> None:
        os.close(self._fd)


class _Archive:
    """A tar archive with random access: indexed once; streams share the descriptor and nothing else."""

    def __init__(self, fd: int, label: str) -> None:
        self._fd = fd
        self.label = label
        self._files: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        length = os.fstat(fd).st_size
        with open(fd, "rb", closefd=False) as stream:
            head = stream.peek(8)
            if head.startswith(b"\x1f\x8b"):
                raise InvalidArgument(f"{label} is a compressed archive", hint="decompress it first, with gunzip")
            for count, entry in enumerate(TarReader(stream, label, seek=True)):
                if count >= _MAX_FILES:
                    raise InvalidArgument(f"{label}: more than {_MAX_FILES} files")
                name = _normal(entry.name)
                if entry.offset + entry.size > length:
                    raise InvalidArgument(f"{label}: broken tar: truncated in {shown(name)}")
                if entry.type is EntryType.FILE:
                    self._files[name] = (entry.offset, entry.size)
                elif entry.type is EntryType.SYMLINK:
                    # docker save writes a layer that several images share as a link.
                    self._links[name] = _normal(posixpath.join(posixpath.dirname(name), entry.link))
                elif entry.type is EntryType.HARD_LINK:
                    self._links[name] = _normal(entry.link)

    def has(self, name: str) -> bool:
        return self._resolve(name) in self._files

    def open(self, name: str) -> BinaryIO:
        found = self._files.get(self._resolve(name))
        if found is None:
            raise _missing(self.label, name)
        return io.BufferedReader(_Section(self._fd, *found), 256 * 1024)

    def close(self) -> None:
        os.close(self._fd)

    def _resolve(self, name: str) -> str:
        name = _normal(name)
        for _ in range(_MAX_LINKS):
            if name not in self._links:
                break
            name = self._links[name]
        return name


def _normal(name: str) -> str:
    return posixpath.normpath("/" + name).lstrip("/")


class _Section(io.RawIOBase):
    """`size` bytes of a file from `offset` on, with its own position."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd = fd
        self._position = offset
        self._end = offset + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer)[: self._end - self._position]
        count = os.preadv(self._fd, [view], self._position) if view else 0
        self._position += count
        return count
