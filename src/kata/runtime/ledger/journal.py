"""The journal: what a sandbox holds outside its own process, written down before it is acquired.

One file in the sandbox's state directory, one line per thing. Whoever finds the file unlocked may release everything:
a normal stop, a failed start, `containerd-shim-kata-v2 delete` after a crash and `kata gc` all call the same
`release`. A line that was written and never acted upon costs nothing, because releasing is idempotent.

What is *not* here on purpose: mounts. A sandbox mounts only inside a mount namespace of its own (see
`kata.runtime.launch.mount_namespace`), which the kernel takes down with the last process in it, whatever killed that.

The shim's short-lived `start` and `delete` import this file, so it imports nothing that costs time.
"""

from __future__ import annotations

import errno
import os

from kata.errors import AlreadyExists, FailedPrecondition
from kata.linux import lock
from kata.runtime.ledger.kinds import RELEASERS

#: Where each sandbox has its state directory (`kata.runtime.ledger.names`).
STATE_ROOT = "/run/kata"

_FILE_NAME = "ledger"


class Locked(Exception):
    """Another living process owns this ledger."""


class Ledger:
    """The open, locked ledger of one sandbox.

    Args:
        directory: the sandbox's state directory, absolute. It is created (mode 0700) if it is not there, and it is
            the last thing that `release` removes.
        wait_s: how long to wait for the lock.

    Raises:
        Locked: another process holds the lock until the end of the wait.
        OSError: the directory or the file cannot be made.
    """

    def __init__(self, directory: str, *, wait_s: float = 0.0) -> None:
        self.directory = directory
        path = os.path.join(directory, _FILE_NAME)
        while True:
            make_directory(os.path.dirname(directory))
            make_directory(directory)
            try:
                fd = lock.acquire(path, timeout=wait_s, flags=os.O_CREAT | os.O_APPEND)
                break
            except FileNotFoundError:
                continue  # whoever had it before has just removed the directory
        if fd is None:
            raise Locked(directory)
        self._fd = fd
        self._held: list[tuple[str, str]] = _read(fd)

    @classmethod
    def adopt(cls, directory: str, fd: int) -> Ledger:
        """The ledger that another process has opened and locked, by its descriptor, which is owned from now on."""
        self = cls.__new__(cls)
        self.directory = directory
        self._fd = fd
        self._held = _read(fd)
        return self

    def hold(self, kind: str, value: str) -> None:
        """Write down that the thing is about to be acquired.

        Args:
            kind: one of `kata.runtime.ledger.kinds`.
            value: names the thing; its form is the kind's.

        Raises:
            ValueError: the value has a character that would end the line or the field.
            OSError: it cannot be written; then the thing must not be acquired.
        """
        if any(character in value for character in "\t\n\0"):
            raise ValueError(f"ledger: control character in {value!r}")
        self._append("+", kind, value)
        self._held.append((kind, value))

    def drop(self, kind: str, value: str) -> None:
        """Write down that the thing has been released. Raises OSError."""
        if (kind, value) in self._held:
            self._append("-", kind, value)
            self._held.remove((kind, value))

    def _append(self, sign: str, kind: str, value: str) -> None:
        line = f"{sign}\t{kind}\t{value}\n".encode()
        written = os.write(self._fd, line)
        if written != len(line):
            # The next line would be taken for the rest of this one.
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.directory)

    def fileno(self) -> int:
        """The descriptor that holds the lock, for a child that takes the ledger over by fork."""
        return self._fd

    @property
    def held(self) -> tuple[tuple[str, str], ...]:
        """(kind, value) pairs, oldest first."""
        return tuple(self._held)

    def release(self) -> list[str]:
        """Release everything, newest first, then remove the state directory and unlock. Idempotent.

        Returns:
            One sentence for each thing that could not be released; the ledger then stays on disk for the next try.
        """
        if self._fd < 0:
            return []  # the directory may be another sandbox's by now
        # Not among the imports: the shim's `start` releases nothing, unless a sandbox of this id has died before.
        from kata.runtime.ledger.files import remove_tree
        from kata.runtime.ledger.release import release

        # Not written down: a full disk must not stand in the way, and the next try finds it done.
        problems = release(self._held)
        if not problems:
            try:
                remove_tree(self.directory)
            except OSError as error:
                problems.append(f"directory {self.directory}: {error.strerror or error}")
        self.close()
        return problems

    def load_release(self) -> None:
        """Import what `release` will need: the owner may outlive its installation."""
        from kata.runtime.ledger import files, release  # noqa: F401

        release.load(kind for kind, _ in self._held)

    def close(self) -> None:
        """Unlock without releasing anything. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def make_directory(path: str) -> None:
    """Make a directory that only its owner may look into, STATE_ROOT for example, unless it exists. Raises OSError."""
    os.makedirs(path, mode=0o700, exist_ok=True)


def claim(directory: str) -> Ledger:
    """Take a sandbox's state directory; what a sandbox that died there still holds is released first.

    Raises:
        AlreadyExists: a living process has it.
        FailedPrecondition: leftovers cannot be released.
    """
    try:
        ledger = Ledger(directory)
        if os.listdir(directory) != [_FILE_NAME] or ledger.held:
            problems = ledger.release()
            if problems:
                raise FailedPrecondition(f"leftovers of an earlier sandbox in {directory}: {'; '.join(problems)}")
            ledger = Ledger(directory)
    except Locked as error:
        raise AlreadyExists(f"sandbox {os.path.basename(directory)} already exists") from error
    return ledger


def _read(fd: int) -> list[tuple[str, str]]:
    held: list[tuple[str, str]] = []
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        for line in file:
            # A line without its end was cut off by a crash: the thing it names was not acquired yet.
            fields = line.decode(errors="replace").rstrip("\n").split("\t")
            if not line.endswith(b"\n") or len(fields) != 3 or fields[1] not in RELEASERS:
                continue
            sign, entry = fields[0], (fields[1], fields[2])
            if sign == "+":
                held.append(entry)
            elif entry in held:
                held.remove(entry)
    return held
