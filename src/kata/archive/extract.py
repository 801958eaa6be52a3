"""Extract a tar stream that nobody vouches for into a directory, and nowhere else.

No symbolic link is followed, neither one of the archive nor one that was there: what would go through one is refused.
Device nodes are left out. Entries replace what has their name, but for a directory that is no directory in the archive.
A run of zeros becomes a hole: over 9p the guest does not see those of its files.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import BinaryIO

from kata.archive.pack import Totals, is_portable
from kata.archive.tar import Entry, EntryType, TarReader, shown
from kata.errors import FailedPrecondition, InvalidArgument, KataError, ResourceExhausted
from kata.linux.openat2 import open_directory, relative_parts

#: Entries of one archive, and directories whose time is set at the end.
MAX_ENTRIES = 10_000_000
_MAX_TIMES = 100_000
_NOFOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC
_SET_ID = stat.S_ISUID | stat.S_ISGID


def extract(
    stream: BinaryIO,
    into: int,
    label: str,
    *,
    owner: tuple[int, int] | None,
    only: str = "",
    told: Callable[[Totals], object] = lambda _: None,
) -> Totals:
    """Extract an archive.

    Args:
        stream: the archive.
        into: a directory.
        label: names the archive in errors.
        owner: user and group of all files, which are never set-user-id or set-group-id then, and have no extended
            attributes; None for the archive's, and for its attributes that `is_portable` names.
        only: the one name in the directory that the archive may have; "" for any.
        told: called with the totals so far, now and then.

    Raises:
        InvalidArgument: it is no archive, or a path leads out of the directory, or to another name.
        FailedPrecondition: something is in the way, or the file system refuses.
        ResourceExhausted: the disk is full, or there are too many entries.
    """
    extraction = _Extraction(stream, into, label, owner, only, told)
    try:
        extraction.run()
    finally:
        extraction.close()
    return extraction.totals


class _Extraction:
    def __init__(
        self,
        stream: BinaryIO,
        into: int,
        label: str,
        owner: tuple[int, int] | None,
        only: str,
        told: Callable[[Totals], object],
    ) -> None:
        self.totals = Totals()
        self._reader = TarReader(stream, label, sparse=True)
        self._into = into
        self._label = label
        self._owner = owner
        self._only = only
        self._told = told
        self._times: dict[str, int] = {}
        # Archives list a directory's files together.
        self._parent: tuple[str, int] | None = None

    def run(self) -> None:
        for entry in self._reader:
            self.totals.entries += 1
            if self.totals.entries > MAX_ENTRIES:
                raise ResourceExhausted(f"{self._label}: more than {MAX_ENTRIES} entries")
            self._guarded(entry.name, self._extract, entry)
            self._told(self.totals)
        # Last, since what is made in a directory changes its time.
        for name, mtime in reversed(self._times.items()):
            self._guarded(name, self._set_time, name, mtime)

    def close(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    def _guarded(self, name: str, call: Callable[..., None], *arguments: object) -> None:
        """Make a call, with errors of the file system as ours.

        Raises:
            InvalidArgument: the name leads out of the directory.
            KataError: the file system refuses.
        """
        try:
            call(*arguments)
        except OSError as error:
            raise self._failure(name, error) from error
        except ValueError as error:
            raise InvalidArgument(f"{self._label}: {shown(name)} leads out of the directory") from error

    def _failure(self, name: str, error: OSError) -> KataError:
        reason = (error.strerror or str(error)).lower()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ResourceExhausted(f"cannot write {shown(name)}: {reason}")
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            reason = "a symbolic link or a file is in the way, where a directory should be"
        return FailedPrecondition(f"cannot write {shown(name)}: {reason}")

    def _extract(self, entry: Entry) -> None:
        parts = relative_parts(entry.name)
        if not parts:
            return  # the directory itself stays as it is
        self._require_expected(parts[0], entry.name)
        directory = self._open_parent("/".join(parts[:-1]))
        name = parts[-1]
        if entry.type in (EntryType.CHARACTER, EntryType.BLOCK):
            self.totals.skip(entry.name)
            return
        source = self._link_source(entry) if entry.type is EntryType.HARD_LINK else None
        try:
            if source is not None:
                directory = self._open_parent("/".join(parts[:-1]))
            self._make_room(directory, name, entry)
            self._create(directory, name, entry, source)
        finally:
            if source is not None:
                os.close(source[0])
        if entry.type is EntryType.DIRECTORY and len(self._times) < _MAX_TIMES:
            self._times["/".join(parts)] = entry.mtime

    def _require_expected(self, first: str, path: str) -> None:
        if self._only and first != self._only:
            raise InvalidArgument(f"{self._label}: {shown(path)} is not what was asked for, {shown(self._only)}")

    def _open_parent(self, path: str) -> int:
        if self._parent is None or self._parent[0] != path:
            fd = open_directory(self._into, path, create_mode=0o755)
            self.close()
            self._parent = path, fd
        return self._parent[1]

    def _make_room(self, directory: int, name: str, entry: Entry) -> None:
        try:
            there = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(there):
            os.unlink(name, dir_fd=directory)
        elif entry.type is not EntryType.DIRECTORY:
            raise FailedPrecondition(f"cannot replace the directory {shown(entry.name)} by a {entry.type}")

    def _link_source(self, entry: Entry) -> tuple[int, str]:
        """The directory, which the caller closes, and the name of what a hard link is another name of.

        Raises:
            InvalidArgument: it names nothing.
        """
        parts = relative_parts(entry.link)
        if not parts:
            raise InvalidArgument(f"{self._label}: {shown(entry.name)} is a hard link to nothing")
        self._require_expected(parts[0], entry.link)
        return open_directory(self._into, "/".join(parts[:-1])), parts[-1]

    def _create(self, directory: int, name: str, entry: Entry, source: tuple[int, str] | None) -> None:
        match entry.type:
            case EntryType.FILE:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW
                with open(os.open(name, flags, 0o600, dir_fd=directory), "wb", buffering=0) as file:
                    self._write(file, entry)
                    self._own(file.fileno(), entry)
                    os.utime(file.fileno(), ns=(entry.mtime, entry.mtime))
            case EntryType.DIRECTORY:
                try:
                    os.mkdir(name, 0o700, dir_fd=directory)
                except FileExistsError:
                    pass
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _NOFOLLOW, dir_fd=directory)
                try:
                    self._own(fd, entry)
                finally:
                    os.close(fd)
            case EntryType.HARD_LINK:
                assert source is not None
                os.link(source[1], name, src_dir_fd=source[0], dst_dir_fd=directory, follow_symlinks=False)
            case EntryType.SYMLINK:
                os.symlink(entry.link, name, dir_fd=directory)
                self._own_name(directory, name, entry)
            case EntryType.FIFO:
                os.mkfifo(name, 0o600, dir_fd=directory)
                self._own_name(directory, name, entry)
                os.chmod(name, self._mode(entry), dir_fd=directory)

    def _write(self, file: BinaryIO, entry: Entry) -> None:
        pieces = iter(entry.pieces)
        offset, left = 0, 0
        for chunk in self._reader.chunks():
            view = memoryview(chunk)
            zero = chunk.count(0) == len(chunk)
            while view:
                while not left:
                    offset, left = next(pieces)
                written = min(left, len(view)) if zero else os.pwrite(file.fileno(), view[:left], offset)
                view, offset, left = view[written:], offset + written, left - written
            self.totals.size += len(chunk)
            self._told(self.totals)
        os.ftruncate(file.fileno(), entry.size)

    def _mode(self, entry: Entry) -> int:
        return entry.mode if self._owner is None else entry.mode & ~_SET_ID

    def _own(self, fd: int, entry: Entry) -> None:
        os.fchown(fd, *(self._owner or (entry.uid, entry.gid)))
        # A new owner takes capabilities away, and an access control list changes the mode.
        for attribute, value in entry.xattrs.items() if self._owner is None else ():
            if is_portable(attribute):
                try:
                    os.setxattr(fd, attribute, value)
                except OSError:
                    self.totals.leave_plain(entry.name)
        os.fchmod(fd, self._mode(entry))

    def _own_name(self, directory: int, name: str, entry: Entry) -> None:
        uid, gid = self._owner or (entry.uid, entry.gid)
        os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=directory, follow_symlinks=False)

    def _set_time(self, name: str, mtime: int) -> None:
        try:
            fd = open_directory(self._into, name)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return  # a later entry has replaced it
            raise
        try:
            os.utime(f"/proc/self/fd/{fd}", ns=(mtime, mtime))
        finally:
            os.close(fd)
