"""watchable-bind: volumes that the host updates, copied to memory, because inotify does not work across a shared tree.

Every two seconds a source is compared with its copy. An update appears as kubelet makes it (AtomicWriter): new files
first, each under a temporary name until it is complete, then links, `..data` last, and only then removals. So a reader
sees the old state or the new one, and a watcher of `..data` one rename.

Containers may write to the copy: no symbolic link is followed on the way to a name, on either side.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Collection
from dataclasses import dataclass

from kata.linux.openat2 import open_directory

log = logging.getLogger(__name__)

#: Kata's limits: a larger volume is bind-mounted, and inotify reports nothing.
MAX_ENTRIES = 16
MAX_BYTES = 1 << 20
#: Options of the tmpfs for one copy: it holds both states of an update at once, and directories count, too.
TMPFS_OPTIONS = ("mode=0755", f"size={4 * MAX_BYTES}", f"nr_inodes={8 * MAX_ENTRIES}", "nosuid", "nodev", "noexec")

_INTERVAL_S = 2.0
_TEMPORARY = "..kata-new-"
_LAST = "..data"


@dataclass(frozen=True)
class Entry:
    """The compared attributes of a directory, a file or a symbolic link; `target` is the link's."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: str = ""


class TooLarge(Exception):
    """The volume has more than MAX_ENTRIES or MAX_BYTES."""


def scan(source: int) -> dict[str, Entry]:
    """The entries below a directory by relative path, directories before their content.

    Args:
        source: the directory, a descriptor.

    Raises:
        TooLarge: more entries or bytes than are copied. Directories do not count, symbolic links do.
        OSError: it changes at this very moment, or is gone.
    """
    found: dict[str, Entry] = {}
    entries = size = 0
    for top, directories, files, fd in os.fwalk(".", dir_fd=source, onerror=_raise):
        for name in (*directories, *files):
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            kind = stat.S_IFMT(info.st_mode)
            if kind not in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK):
                continue
            path = os.path.normpath(f"{top}/{name}")
            target = os.readlink(name, dir_fd=fd) if kind == stat.S_IFLNK else ""
            bytes_ = info.st_size if kind == stat.S_IFREG else 0
            # The time of a directory changes with its entries, which are compared themselves.
            changed = 0 if kind == stat.S_IFDIR else info.st_mtime_ns
            found[path] = Entry(info.st_mode, info.st_uid, info.st_gid, bytes_, changed, target)
            entries, size = entries + (kind != stat.S_IFDIR), size + bytes_
            if entries > MAX_ENTRIES or size > MAX_BYTES or len(found) > 4 * MAX_ENTRIES:
                raise TooLarge(f"more than {MAX_ENTRIES} files or {MAX_BYTES} bytes")
    return found


class Copy:
    """One volume and its copy.

    Args:
        source, target: directories, opened with O_PATH; owned from here on.
    """

    def __init__(self, source: int, target: int) -> None:
        self._source = source
        self._target = target
        self._copied: dict[str, Entry] = {}
        self._problem = ""

    def close(self) -> None:
        """Close both directories."""
        os.close(self._source)
        os.close(self._target)

    def update(self) -> None:
        """Make the copy like the source.

        Raises:
            TooLarge, OSError: as `scan`; the copy is as it was, or has new files that no link points to yet.
        """
        wanted = scan(self._source)
        changed = [path for path, entry in wanted.items() if self._copied.get(path) != entry]
        changed.sort(key=lambda path: (stat.S_ISLNK(wanted[path].mode), os.path.basename(path) == _LAST))
        other = {path for path in changed if self._has_other_type(path, wanted[path])}
        gone = [path for path in self._copied if path not in wanted]
        # An entry whose type has changed has to go first, with its content.
        for path in sorted({*other, *(path for path in gone if _beneath(path, other))}, reverse=True):
            self._remove(path)
            gone = [left for left in gone if left != path]
        for path in changed:
            self._put(path, wanted[path])
            self._copied[path] = wanted[path]
        for path in reversed(gone):
            self._remove(path)

    def follow(self) -> None:
        """Like `update`, but an error is logged, once, and left to the next time."""
        try:
            self.update()
            self._problem = ""
        except (OSError, TooLarge) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                log.warning("cannot copy an update of a watched volume: %s", error)

    def _has_other_type(self, path: str, entry: Entry) -> bool:
        old = self._copied.get(path)
        return old is not None and stat.S_IFMT(old.mode) != stat.S_IFMT(entry.mode)

    def _put(self, path: str, entry: Entry) -> None:
        parent, name = os.path.split(path)
        directory = open_directory(self._target, parent)
        temporary = f"{_TEMPORARY}{name}"[:255]
        try:
            if stat.S_ISDIR(entry.mode):
                try:
                    os.mkdir(name, 0o700, dir_fd=directory)
                except FileExistsError:
                    pass
                self._own(name, directory, entry)
                return
            try:
                os.unlink(temporary, dir_fd=directory)
            except FileNotFoundError:
                pass
            if stat.S_ISLNK(entry.mode):
                os.symlink(entry.target, temporary, dir_fd=directory)
                os.chown(temporary, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
            else:
                self._write(path, temporary, directory)
                self._own(temporary, directory, entry)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            os.close(directory)

    def _write(self, path: str, name: str, directory: int) -> None:
        parent, file = os.path.split(path)
        from_directory = open_directory(self._source, parent)
        try:
            source = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=from_directory)
        finally:
            os.close(from_directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with (
            os.fdopen(source, "rb") as reader,
            os.fdopen(os.open(name, flags, 0o600, dir_fd=directory), "wb") as writer,
        ):
            writer.write(reader.read(MAX_BYTES))

    @staticmethod
    def _own(name: str, directory: int, entry: Entry) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, stat.S_IMODE(entry.mode))
        finally:
            os.close(fd)

    def _remove(self, path: str) -> None:
        parent, name = os.path.split(path)
        entry = self._copied.pop(path)
        try:
            directory = open_directory(self._target, parent)
        except FileNotFoundError:
            return
        try:
            if stat.S_ISDIR(entry.mode):
                os.rmdir(name, dir_fd=directory)
            else:
                os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            pass
        finally:
            os.close(directory)


class Watcher:
    """Follows any number of volumes in a thread, because a shared tree may be slow, or hang."""

    def __init__(self) -> None:
        self._copies: dict[str, Copy] = {}
        #: Those that are being updated, for which nobody waits: the thread closes them if they were removed meanwhile.
        self._busy: set[Copy] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._woken = threading.Event()

    def add(self, point: str, copy: Copy) -> None:
        """Follow a volume that has been copied once."""
        with self._lock:
            self._copies[point] = copy
            if self._thread is None:
                self._woken.clear()
                self._thread = threading.Thread(target=self._run, name="watchable", daemon=True)
                self._thread.start()

    def remove(self, point: str) -> None:
        """Stop following a volume. An update in progress may go on, in what the caller unmounts. Idempotent."""
        with self._lock:
            copy = self._copies.pop(point, None)
            if copy and copy not in self._busy:
                copy.close()
            if not self._copies:
                self._thread = None
                self._woken.set()

    def _run(self) -> None:
        while not self._woken.wait(_INTERVAL_S):
            with self._lock:
                if self._thread is not threading.current_thread():
                    return
                copies = list(self._copies.items())
            for point, copy in copies:
                self._follow(point, copy)

    def _follow(self, point: str, copy: Copy) -> None:
        with self._lock:
            if self._copies.get(point) is not copy:
                return
            self._busy.add(copy)
        copy.follow()
        with self._lock:
            self._busy.remove(copy)
            if self._copies.get(point) is not copy:
                copy.close()


def _beneath(path: str, directories: Collection[str]) -> bool:
    return any(path.startswith(f"{directory}/") for directory in directories)


def _raise(error: OSError) -> None:
    raise error
