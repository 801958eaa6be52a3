"""Guests' memory in anonymous files (memfd).

A QEMU before 8.2 opens the file of a guest's memory for writing, although it maps it privately. If that were a
template's file, who has taken over one QEMU could write to the clean pages of all its siblings. So it gets a copy in
memory instead, which is sealed: the kernel refuses to write to it or to resize it, to whoever has it open, whatever
their user and capabilities, for good. All VMs of a host that are restored from one saved memory share one copy. Each
process that has such a VM holds it, and says so by a link in the VM's directory, by which the next one finds it; the
copy is gone with the last of them.

Imports next to nothing: a shim does this before it has loaded asyncio.

References: memfd_create(2); fcntl(2), "File Sealing".
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

#: In a VM's directory: a link to the descriptor of the copy, in /proc of the process that holds it.
HELD = "template-memory"

#: No write, by a call or through a mapping, no other size, and no other seals.
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
#: Seconds to wait for another process that makes the copy, which takes it 0.05 s on an idle host.
_WAIT_S = 5.0
_POLL_S = 0.002
#: The kernel cannot seal a page while something looks at it, for a moment.
_SEAL_ATTEMPTS = 20


def memory_to_share(size_mib: int) -> int:
    """A memfd for a guest's memory that other processes map, too; empty.

    Returns:
        The descriptor, which the caller closes.

    Raises:
        OSError: it cannot be made.
    """
    memory = os.memfd_create("guest-memory", os.MFD_CLOEXEC)
    try:
        os.ftruncate(memory, size_mib << 20)
    except BaseException:
        os.close(memory)
        raise
    return memory


def copy_memory(saved: int, memory: int) -> None:
    """Copy a saved VM's memory. Its holes stay holes.

    Args:
        saved: descriptor of the saved VM's memory.
        memory: descriptor of an empty memfd of the same size.

    Raises:
        OSError: there is not enough memory.
    """
    position = 0
    while True:
        try:
            position = os.lseek(saved, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        end = os.lseek(saved, position, os.SEEK_HOLE)
        os.lseek(memory, position, os.SEEK_SET)
        while position < end:
            position += os.sendfile(memory, saved, position, end - position)


class SealedCopy:
    """The copy of a saved VM's memory that all VMs of this host share; found, or made by `complete`.

    Whoever makes it keeps others from making another one, until `complete` or `close`.

    Args:
        saved: descriptor of the saved memory, open for reading at least, by an open(2) of this process; stays the
            caller's.
        directory: the VM's. Those of other VMs are beside it.

    Attributes:
        memory: descriptor of the copy, for the VMM; it is not to be written to.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, saved: int, directory: Path) -> None:
        self._saved = saved
        self._link = directory / HELD
        self._is_mine = False
        info = os.fstat(saved)
        # Nobody can set a change time: whatever was written to the file, its copy has another name.
        self._name = f"template-{info.st_dev:x}-{info.st_ino:x}-{info.st_ctime_ns:x}"
        self._size = info.st_size
        self.memory = self._find_or_make(directory.parent)

    def _find_or_make(self, beside: Path) -> int:
        deadline = time.monotonic() + _WAIT_S
        while True:
            # In this order: who has made one announces it before it lets others make one.
            self._is_mine = self._try_lock()
            if (found := self._find(beside)) >= 0:
                self._unlock()
                return found
            if self._is_mine or time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        self._is_mine = True
        memory = os.memfd_create(self._name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(memory, self._size)
        except BaseException:
            os.close(memory)
            raise
        return memory

    def _find(self, beside: Path) -> int:
        try:
            directories = os.listdir(beside)
        except OSError:
            return -1
        for directory in directories:
            try:
                path = os.readlink(beside / directory / HELD)
                # Before it is opened: the process may have ended, and its number be another's.
                if os.readlink(path) != self._as_linked:
                    continue
                found = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            if self._is_sealed(found):
                return found
            os.close(found)
        return -1

    @property
    def _as_linked(self) -> str:
        """How /proc shows the copy (proc(5))."""
        return f"/memfd:{self._name} (deleted)"

    def _is_sealed(self, found: int) -> bool:
        """Whether this is a copy that a process of this user has made."""
        info = os.fstat(found)
        return (
            os.readlink(f"/proc/self/fd/{found}") == self._as_linked
            and (info.st_uid, info.st_size) == (os.geteuid(), self._size)
            and fcntl.fcntl(found, fcntl.F_GET_SEALS) == _SEALS
        )

    def complete(self) -> None:
        """Copy and seal, unless another process has; then tell others of it. Before a VM runs on it.

        Raises:
            OSError: there is not enough memory, or the copy cannot be sealed.
        """
        if self._is_mine:
            copy_memory(self._saved, self.memory)
            _seal(self.memory)
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(f"/proc/{os.getpid()}/fd/{self.memory}")
        self._unlock()

    def close(self) -> None:
        """Let go of it. Idempotent."""
        if self.memory >= 0:
            self._unlock()
            self._link.unlink(missing_ok=True)
            os.close(self.memory)
            self.memory = -1

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._saved, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(self) -> None:
        if self._is_mine:
            self._is_mine = False
            fcntl.flock(self._saved, fcntl.LOCK_UN)


def _seal(memory: int) -> None:
    for attempt in range(1, _SEAL_ATTEMPTS + 1):
        try:
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
            return
        except OSError as error:
            if error.errno != errno.EBUSY or attempt == _SEAL_ATTEMPTS:
                raise
            time.sleep(_POLL_S)
