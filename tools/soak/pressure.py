"""What a host is made short of: a cgroup for all pods with a limit of memory, and a small disk for containerd."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kata.errors import FailedPrecondition
from kata.linux import cgroup, hierarchies, mount

_FILLER = "filler"
_TIMEOUT_S = 60.0


class PodsGroup:
    """A cgroup that pods are made in, in each hierarchy.

    Args:
        name: of the cgroup, with a slash before it.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._hierarchies = hierarchies.mounted()
        for hierarchy in self._hierarchies:
            hierarchies.make(hierarchy, hierarchy.directory(name))

    def limit(self, memory_mib: int | None) -> None:
        """Set the limit of their memory; None for none. Raises OSError."""
        for hierarchy in self._hierarchies:
            directory = hierarchy.directory(self.name)
            file, none = ("memory.max", "max") if hierarchy.unified else ("memory.limit_in_bytes", "-1")
            if os.path.exists(f"{directory}/{file}"):
                text = none if memory_mib is None else str(memory_mib << 20)
                try:
                    cgroup.write(directory, file, text)
                except OSError as error:
                    # Version 1: what is charged to it cannot be taken back at once.
                    if error.errno != errno.EBUSY:
                        raise

    def close(self) -> None:
        """Remove it. Raises OSError: something is in it."""
        for hierarchy in self._hierarchies:
            os.rmdir(hierarchy.directory(self.name))


class SmallDisk:
    """A file system of its own, which can be filled.

    Args:
        point: where it is mounted.
    """

    def __init__(self, point: Path) -> None:
        self._filler = point / _FILLER
        self._point = point

    def fill(self, left_mib: int) -> None:
        """Leave no more room than this. Raises OSError."""
        info = os.statvfs(self._point)
        size = info.f_bavail * info.f_frsize - (left_mib << 20)
        if size > 0:
            fd = os.open(self._filler, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, size)
            except OSError as error:
                # Others write at the same time, and a file system takes some room for itself: it is full.
                if error.errno != errno.ENOSPC:
                    raise
            finally:
                os.close(fd)

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)


@contextmanager
def small_disk(image: Path, point: Path, size_mib: int) -> Iterator[SmallDisk]:
    """A small ext4 on a file, mounted in this mount namespace.

    Raises:
        FailedPrecondition: it cannot be made or mounted.
    """
    image.touch()
    os.truncate(image, size_mib << 20)
    _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
    _run("mount", "-o", "loop", str(image), str(point))
    try:
        yield SmallDisk(point)
    finally:
        mount.umount(str(point))
        image.unlink()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        raise FailedPrecondition(f"{' '.join(command)}: {done.stderr.strip() or f'status {done.returncode}'}")
