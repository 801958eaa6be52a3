"""watchable-bind: volumes that the host changes, copied to memory, because inotify does not see across a shared tree.

Every two seconds a source is compared with what was copied. An update appears as kubelet makes it: new files first,
each whole when it has its name, then links, `..data` last of all, and only then goes what is no longer there. So a
reader sees the old state or the new one, and a watcher of `..data` one rename.

The copy is where containers may write: no symbolic link is followed on the way to a name, on either side.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Collection
from dataclasses import dataclass

from kata.linux.openat2 import open_directory

_log = logging.getLogger(__name__)

#: Kata's: more is not copied but bound, and inotify sees nothing.
ENTRIES_MAX = 16
BYTES_MAX = 1 << 20
#: Options of the tmpfs for one copy: both states of an update are in it at once, and directories count, too.
TMPFS_OPTIONS = ("mode=0755", f"size={4 * BYTES_MAX}", f"nr_inodes={8 * ENTRIES_MAX}", "nosuid", "nodev", "noexec")

_INTERVAL_S = 2.0
_TEMPORARY = "..kata-new-"
_LAST = "..data"


@dataclass(frozen=True)
class Entry:
    """What is compared of a directory, a file or a symbolic link; `target` is the link's."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: str = ""


class TooLarge(Exception):
    """There is more than can be followed."""


def scan(source: int) -> dict[str, Entry]:
    """What is below a directory, by relative path, directories before what is in them.

    Raises:
        TooLarge: more entries or bytes than can be followed. Directories do not count, symbolic links do.
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
            # The time of a directory changes with what is in it, which is compared by itself.
            changed = 0 if kind == stat.S_IFDIR else info.st_mtime_ns
            found[path] = Entry(info.st_mode, info.st_uid, info.st_gid, bytes_, changed, target)
            entries, size = entries + (kind != stat.S_IFDIR), size + bytes_
            if entries > ENTRIES_MAX or size > BYTES_MAX or len(found) > 4 * ENTRIES_MAX:
                raise TooLarge(f"more than {ENTRIES_MAX} files or {BYTES_MAX} bytes")
    return found


class Copy:
    """One volume and its copy. Owns both descriptors.

    Args:
        source, target: directories, opened with O_PATH.
    """

    def __init__(self, source: int, target: int) -> None:
        self._source = source
        self._target = target
        self._copied: dict[str, Entry] = {}
        self._problem = ""

    def close(self) -> None:
        os.close(self._source)
        os.close(self._target)

    def update(self) -> None:
        """Make the copy like the source.

        Raises:
            TooLarge, OSError: as `scan`; the copy is as it was, or has new files that nothing leads to yet.
        """
        wanted = scan(self._source)
        changed = [path for path, entry in wanted.items() if self._copied.get(path) != entry]
        changed.sort(key=lambda path: (stat.S_ISLNK(wanted[path].mode), os.path.basename(path) == _LAST))
        other = {path for path in changed if self._is_other_kind(path, wanted[path])}
        gone = [path for path in self._copied if path not in wanted]
        # What has become another kind has to go first, with what was in it.
        for path in sorted({*other, *(path for path in gone if _beneath(path, other))}, reverse=True):
            self._remove(path)
            gone = [left for left in gone if left != path]
        for path in changed:
            self._put(path, wanted[path])
            self._copied[path] = wanted[path]
        for path in reversed(gone):
            self._remove(path)

    def follow(self) -> None:
        """Like `update`, but what goes wrong is logged, once, and left to the next time."""
        try:
            self.update()
            self._problem = ""
        except (OSError, TooLarge) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                _log.warning("a watched volume cannot be copied as it is now: %s", error)

    def _is_other_kind(self, path: str, entry: Entry) -> bool:
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
            writer.write(reader.read(BYTES_MAX))

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
    """Follows any number of volumes, in a thread of its own: a shared tree may take its time."""

    def __init__(self) -> None:
        self._copies: dict[str, Copy] = {}
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
        """Follow it no more; it is not looked at when this returns. Does nothing for one that is not followed."""
        with self._lock:
            copy = self._copies.pop(point, None)
            if copy:
                copy.close()
            if not self._copies:
                self._thread = None
                self._woken.set()

    def _run(self) -> None:
        while not self._woken.wait(_INTERVAL_S):
            with self._lock:
                if self._thread is not threading.current_thread():
                    return
                for copy in self._copies.values():
                    copy.follow()


def _beneath(path: str, directories: Collection[str]) -> bool:
    return any(path.startswith(f"{directory}/") for directory in directories)


def _raise(error: OSError) -> None:
    raise error
