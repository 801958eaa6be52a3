"""The layer cache: layers of images as erofs disks, each made once and used by any number of sandboxes.

    <root>/<key>/disk.erofs     the disk
    <root>/<key>/record.json    its size, and when it was last changed
    <root>/<key>/…              what its builder has put beside it
    <root>/.<key>.lock          locked by whoever builds it
    <root>/.<key>.building/     half an entry
    <root>/.removed-<key>-…/    one that is being removed

An entry appears by rename(2), when all of it is on the disk, so there is never half of one. Who uses an entry holds a
shared flock(2) on its directory, which the kernel drops with the process; who removes one needs an exclusive one. The
time of the directory is that of its last use.

A changed or truncated disk is noticed by its size and by the time of its last change, which no program can set. What
the host's disk itself has corrupted is not.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kata.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, KataError, ResourceExhausted
from kata.linux import atomic_file, lock
from kata.runtime.images import erofs
from kata.runtime.ledger.files import remove_tree

TREE = "tree"
_DISK = "disk.erofs"
_RECORD = "record.json"
_LOCK, _BUILDING, _REMOVED = ".lock", ".building", ".removed-"
#: For another process that is building the same entry.
_BUILD_TIMEOUT_S = 900.0
#: For one that lists or removes entries: it has each for a moment.
_LOCK_TIMEOUT_S, _LOCK_POLL_S = 5.0, 0.01
_KEY = re.compile(r"[a-z0-9][a-z0-9-]{0,199}")


class LayerDisk:
    """An entry of the cache, which stays as long as this is open.

    Args:
        directory: the entry.
        fd: of the directory, locked.
    """

    def __init__(self, directory: Path, fd: int) -> None:
        self.directory = directory
        self._fd = fd

    @property
    def disk(self) -> Path:
        """The erofs image."""
        return self.directory / _DISK

    def close(self) -> None:
        """Let it be removed. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True)
class Listed:
    """An entry as `kata layers list` shows it.

    Attributes:
        key: its name.
        size: bytes that it takes on the host's disk.
        used: when it was last used, in seconds since 1970.
        in_use: whether a sandbox has it now.
    """

    key: str
    size: int
    used: float
    in_use: bool


class LayerCache:
    """The layer cache of this host.

    Args:
        root: its directory; made when the first entry is.
        size: bytes to which it is pruned after something was added; what is in use stays nonetheless.
    """

    def __init__(self, root: Path, size: int) -> None:
        self._root = root
        self._size = size

    def find(self, key: str) -> LayerDisk | None:
        """Take an entry; None if there is none, or if it is damaged. Close it after use."""
        directory = self._root / key
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if _lock_shared(fd) and _is_at(directory, fd) and _is_whole(directory):
                os.utime(fd)
                return LayerDisk(directory, fd)
        except OSError:
            pass
        os.close(fd)
        return None

    def obtain(self, key: str, fill: Callable[[Path], Path]) -> LayerDisk:
        """Take an entry, which is made if there is none. Close it after use.

        Args:
            key: lower-case letters, digits and hyphens; it stands for the content.
            fill: returns the directory that becomes the disk: it exists already, or is TREE in the directory that
                `fill` gets, which is the entry; what else is put there stays.

        Raises:
            ResourceExhausted: the disk is full.
            InvalidArgument: the key is none.
            DeadlineExceeded: another process has been making it for 15 minutes.
            FailedPrecondition: the directory cannot be written.
            KataError: as `fill`, and `erofs.write_image`.
        """  # noqa: DOC501 - `_failure` makes one of these
        if not _KEY.fullmatch(key):
            raise InvalidArgument(f"invalid key of a layer {key[:100]!r}")
        found = self.find(key)
        if found is None:
            try:
                found = self._make(key, fill)
            except OSError as error:
                raise _failure(error, self._root) from error
            self.prune()
        return found

    def _make(self, key: str, fill: Callable[[Path], Path]) -> LayerDisk:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._alone(key, _BUILD_TIMEOUT_S) as building:
            if building is None:
                raise DeadlineExceeded(f"another process has been making layer {key} for {_BUILD_TIMEOUT_S:.0f} s")
            found = self.find(key)  # made meanwhile
            if found is None:
                self.sweep()
                self._discard(key, damaged=True)
                try:
                    found = self._build(building, key, fill)
                except BaseException:
                    remove_tree(str(building))
                    raise
            return found

    def _build(self, building: Path, key: str, fill: Callable[[Path], Path]) -> LayerDisk:
        building.mkdir(mode=0o700)
        erofs.write_image(fill(building), building / _DISK)
        remove_tree(str(building / TREE))
        atomic_file.write(building / _RECORD, json.dumps(_record(building / _DISK)))
        for path in building.rglob("*"):
            _sync(path)
        _sync(building)
        fd = os.open(building, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Before others can see it, so that nobody removes it first.
            fcntl.flock(fd, fcntl.LOCK_SH)
            building.rename(self._root / key)
            atomic_file.sync_directory(self._root)
        except BaseException:
            os.close(fd)
            raise
        return LayerDisk(self._root / key, fd)

    @contextlib.contextmanager
    def _alone(self, key: str, timeout: float) -> Iterator[Path | None]:
        """The directory for half an entry, for whoever builds it or removes what is left of it; None: it is taken."""
        path = self._root / f".{key}{_LOCK}"
        fd = lock.acquire(path, timeout=timeout)
        if fd is None:
            yield None
            return
        try:
            building = self._root / f".{key}{_BUILDING}"
            yield building if _is_removed(building) else None
        finally:
            path.unlink(missing_ok=True)
            os.close(fd)

    def sweep(self) -> list[str]:
        """Remove what builders and removers that were killed have left; returns the names.

        Raises:
            OSError: something cannot be removed.
        """
        removed = []
        for name in sorted(_names(self._root)):
            if name.startswith(_REMOVED):
                # Whoever has renamed it may be at it, too.
                shutil.rmtree(self._root / name, ignore_errors=True)
                removed.append(name)
            elif name.startswith(".") and name.endswith((_LOCK, _BUILDING)):
                key = name.removeprefix(".").removesuffix(_LOCK).removesuffix(_BUILDING)
                there = (self._root / f".{key}{_BUILDING}").exists()
                with self._alone(key, 0.0) as mine:
                    if mine and there:
                        removed.append(mine.name)
        return removed

    def prune(self, size: int | None = None) -> list[str]:
        """Remove damaged entries, then the least recently used until the others fit; returns the keys.

        Args:
            size: bytes; None for those of the configuration. What is in use stays.

        Raises:
            ResourceExhausted, FailedPrecondition: one cannot be removed.
        """  # noqa: DOC501 - `_failure` makes one of these
        limit = self._size if size is None else size
        try:
            damaged = [entry.key for entry in self.entries() if not _is_whole(self._root / entry.key)]
            removed = [key for key in damaged if self._discard(key)]
            entries = self.entries()
            total = sum(entry.size for entry in entries)
            for entry in reversed(entries):
                if total > limit and self._discard(entry.key):
                    total -= entry.size
                    removed.append(entry.key)
        except OSError as error:
            raise _failure(error, self._root) from error
        return removed

    def entries(self) -> list[Listed]:
        """All entries, the most recently used first."""
        found = []
        for name in _names(self._root):
            if not _KEY.fullmatch(name):
                continue
            try:
                with _locked(self._root / name) as fd, os.scandir(self._root / name) as files:
                    size = sum(file.stat().st_blocks * 512 for file in files)
                    used = (self._root / name).stat().st_mtime
                    found.append(Listed(name, size, used, fd is None))
            except FileNotFoundError:
                continue  # removed meanwhile
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def _discard(self, key: str, *, damaged: bool = False) -> bool:
        """Remove an entry that nobody uses, or a damaged one: whoever uses that keeps it. Whether it is gone."""
        try:
            with _locked(self._root / key) as fd:
                if fd is None and not damaged:
                    return False
                # Renamed first, so that nobody finds half of it.
                doomed = self._root / f"{_REMOVED}{key}-{os.urandom(8).hex()}"
                (self._root / key).rename(doomed)
        except FileNotFoundError:
            return True
        shutil.rmtree(doomed, ignore_errors=True)
        return True


def _is_removed(building: Path) -> bool:
    """Remove what a builder that was killed has left; False if that is still written to.

    Its mkfs.erofs is killed with it, but may end a moment later.

    Raises:
        OSError: something cannot be removed.
    """
    until = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            remove_tree(str(building))
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            if time.monotonic() > until:
                return False
            time.sleep(_LOCK_POLL_S)
        else:
            return True


def _names(root: Path) -> list[str]:
    try:
        return os.listdir(root)
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[int | None]:
    """Have an entry for oneself: a descriptor of its directory, or None if it is in use.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be opened.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        if not _is_at(directory, fd):
            raise FileNotFoundError(errno.ENOENT, "removed meanwhile", str(directory))
        yield fd
    finally:
        os.close(fd)


def _lock_shared(fd: int) -> bool:
    """Whether the shared lock of an entry was had: who lists entries has the other one for a moment."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
        time.sleep(_LOCK_POLL_S)


def _is_at(directory: Path, fd: int) -> bool:
    return os.path.samestat(os.stat(directory, follow_symlinks=False), os.fstat(fd))


def _record(disk: Path) -> dict[str, int]:
    info = disk.stat()
    return {"size": info.st_size, "changed_ns": info.st_ctime_ns}


def _is_whole(directory: Path) -> bool:
    """Whether the disk is the one that was built, as far as its size and the time of its last change tell."""
    try:
        return bool(json.loads((directory / _RECORD).read_bytes()) == _record(directory / _DISK))
    except (OSError, ValueError):
        return False


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _failure(error: OSError, root: Path) -> KataError:
    reason = (error.strerror or str(error)).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(
            f"cannot keep layers in {root}: {reason}",
            hint="free some space, run `kata layers prune`, or set layer_cache_path in the configuration",
        )
    return FailedPrecondition(
        f"cannot keep layers in {root}: {reason}", hint="set layer_cache_path in the configuration"
    )
