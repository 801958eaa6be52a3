"""The ledger: what a sandbox holds outside its own process, written down before it is acquired.

One file in the sandbox's state directory, one line per thing. Whoever finds the file unlocked may give everything back:
a normal stop, a failed start, `containerd-shim-kata-v2 delete` after a crash and `kata gc` all call the same
`release`. A line that was written and never acted upon costs nothing, because giving back is idempotent.

What is *not* here on purpose: mounts. A sandbox mounts only inside a mount namespace of its own (see
`kata.runtime.launch.mount_namespace`), which the kernel takes down with the last process in it, whatever killed that.

The shim's short-lived `delete` process imports this file, so it imports nothing that costs time.
"""

from __future__ import annotations

# Not `signal`: its enums would double what this file costs to import.
import _signal  # type: ignore[import-not-found]
import errno
import fcntl
import itertools
import os
import time

from kata.errors import AlreadyExists, FailedPrecondition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Where each sandbox has its state directory, under its id.
STATE_ROOT = "/run/kata"
#: Every process that belongs to a sandbox has this variable in its environment; its value is the state directory.
MARKER = "KATA_SANDBOX_DIR"

#: A process, found by MARKER: the value is the state directory that the variable names.
PROCESS = "process"
#: A file or socket outside the state directory: the value is its absolute path.
FILE = "file"
#: A directory outside the state directory, with all that is in it: the value is its absolute path.
TREE = "tree"
#: A filter on an interface of a pod's network namespace: the value is "INODE INDEX PATH".
NETWORK = "network"
#: An interface that was made in a pod's network namespace: the value is "INODE INDEX PATH".
INTERFACE = "interface"
#: A control group's directory on the host: the value is its absolute path.
CGROUP = "cgroup"
#: A PCI device that was taken from its driver: the value is "ADDRESS" or "ADDRESS DRIVER_OVERRIDE".
PCI = "pci"
#: Hooks of a container that have to be run when it is gone: the value is "CONTAINER STATE-DIRECTORY BUNDLE".
HOOKS = "hooks"
#: A network that CNI plugins have made: the value is the path of the record of it.
CNI = "cni"

_FILE_NAME = "ledger"
_KILL_DEADLINE_S = 5.0
#: Seconds for processes that were killed to be out of their control group.
_GROUP_DEADLINE_S = 2.0


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
        deadline = time.monotonic() + wait_s
        while True:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                self._lock(deadline)
                # Whoever had the lock before may just have removed the file: this lock would then exclude nobody.
                if _is_at(self._fd, path):
                    break
            except BaseException:
                os.close(self._fd)
                raise
            os.close(self._fd)
        self._held: list[tuple[str, str]] = _read(self._fd)

    @classmethod
    def adopt(cls, directory: str, fd: int) -> Ledger:
        """The ledger that another process has opened and locked, by its descriptor, which is owned from now on."""
        self = cls.__new__(cls)
        self.directory = directory
        self._fd = fd
        self._held = _read(fd)
        return self

    def _lock(self, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            if time.monotonic() >= deadline:
                raise Locked(self.directory)
            time.sleep(0.002)

    def hold(self, kind: str, value: str) -> None:
        """Write down that the thing is about to be acquired."""
        if any(character in value for character in "\t\n\0"):
            raise ValueError(f"ledger: control character in {value!r}")
        self._append("+", kind, value)
        self._held.append((kind, value))

    def drop(self, kind: str, value: str) -> None:
        """Write down that the thing has been given back."""
        if (kind, value) in self._held:
            self._append("-", kind, value)
            self._held.remove((kind, value))

    def _append(self, sign: str, kind: str, value: str) -> None:
        line = f"{sign}\t{kind}\t{value}\n".encode()
        if os.write(self._fd, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.directory)

    def fileno(self) -> int:
        """The descriptor that holds the lock, for a child that takes the ledger over by fork."""
        return self._fd

    @property
    def held(self) -> tuple[tuple[str, str], ...]:
        """(kind, value) pairs, oldest first."""
        return tuple(self._held)

    def release(self) -> list[str]:
        """Give everything back, newest first, then remove the state directory and unlock. Idempotent.

        Returns:
            One sentence for each thing that could not be given back; the ledger then stays on disk for the next try.
        """
        if self._fd < 0:
            return []  # the directory may be another sandbox's by now
        problems: list[str] = []
        newest_first = self._held[::-1]
        # Processes before all: where they are and what they use can be given back only then.
        for kind, value in sorted(newest_first, key=lambda entry: entry[0] != PROCESS):
            try:
                # Not written down: a full disk must not stand in the way, and the next try finds it done.
                _GIVE_BACK[kind](value)
            except OSError as error:
                problems.append(f"{kind} {value}: {error.strerror or error}")
        if not problems:
            try:
                remove_tree(self.directory)
            except OSError as error:
                problems.append(f"directory {self.directory}: {error.strerror or error}")
        self.close()
        return problems

    def close(self) -> None:
        """Unlock without giving anything back. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def claim(directory: str) -> Ledger:
    """Take a sandbox's state directory; what a sandbox that died there still holds is given back first.

    Raises:
        AlreadyExists: a living process has it.
        FailedPrecondition: leftovers cannot be given back.
    """
    try:
        ledger = Ledger(directory)
        if os.listdir(directory) != [_FILE_NAME] or ledger.held:
            problems = ledger.release()
            if problems:
                raise FailedPrecondition(f"leftovers of an earlier sandbox in {directory}: {'; '.join(problems)}")
            ledger = Ledger(directory)
    except Locked as error:
        raise AlreadyExists(f"sandbox {os.path.basename(directory)} exists already") from error
    return ledger


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _read(fd: int) -> list[tuple[str, str]]:
    held: list[tuple[str, str]] = []
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        for line in file:
            # A line without its end was cut off by a crash: the thing it names was not acquired yet.
            fields = line.decode(errors="replace").rstrip("\n").split("\t")
            if not line.endswith(b"\n") or len(fields) != 3 or fields[1] not in _GIVE_BACK:
                continue
            sign, entry = fields[0], (fields[1], fields[2])
            if sign == "+":
                held.append(entry)
            elif entry in held:
                held.remove(entry)
    return held


def processes_of(directory: str) -> Iterator[int]:
    """The ids of the processes that carry the sandbox's MARKER, this one excepted."""
    wanted = f"{MARKER}={directory}".encode()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                environment = file.read()
        except OSError:
            continue
        if wanted in environment.split(b"\0"):
            yield int(name)


def _kill_processes(directory: str) -> None:
    deadline = time.monotonic() + _KILL_DEADLINE_S
    while pids := list(processes_of(directory)):
        for pid in pids:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                # Looked up once more through a stable handle: the number may have been given to somebody else.
                if pid in processes_of(directory):
                    _signal.pidfd_send_signal(pidfd, _signal.SIGKILL)
            except ProcessLookupError:
                pass
            finally:
                os.close(pidfd)
        if time.monotonic() > deadline:
            raise OSError(errno.EBUSY, f"processes {pids} survive SIGKILL")
        time.sleep(0.002)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def remove_tree(directory: str) -> None:
    """Remove a directory tree, and never anything that is mounted in it. Idempotent.

    What a container made may be nested deeper than a path can name, so nothing here descends: directories found in a
    directory move up to the top, one after the other, until there is only one level. Symbolic links are not followed.

    Raises:
        OSError: EBUSY if something is mounted beneath, else what the kernel says.
    """
    directory = os.path.realpath(directory)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            point = line.split(" ", 5)[4].replace("\\040", " ")
            if point == directory or point.startswith(directory + "/"):
                raise OSError(errno.EBUSY, f"{point} is still mounted")
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        top = os.open(directory, flags)
    except FileNotFoundError:
        return
    try:
        _remove_content(top, flags)
    finally:
        os.close(top)
    os.rmdir(directory)


def _remove_content(top: int, flags: int) -> None:
    waiting, files = _entries(top)
    taken = {*waiting, *files}
    names = (name for name in map("removed-{}".format, itertools.count()) if name not in taken)
    while waiting:
        directory = waiting.pop()
        child = os.open(directory, flags, dir_fd=top)
        try:
            deeper, inside = _entries(child)
            for name in inside:
                os.unlink(name, dir_fd=child)
            for name in deeper:
                waiting.append(next(names))
                os.rename(name, waiting[-1], src_dir_fd=child, dst_dir_fd=top)
        finally:
            os.close(child)
        os.rmdir(directory, dir_fd=top)
    # Last, because a sandbox's ledger is among them.
    for name in files:
        os.unlink(name, dir_fd=top)


def _entries(fd: int) -> tuple[list[str], list[str]]:
    """Names of the directories and of everything else in a directory."""
    directories: list[str] = []
    others: list[str] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            (directories if entry.is_dir(follow_symlinks=False) else others).append(entry.name)
    return directories, others


def _detach(value: str) -> None:
    # Not among the imports, because most sandboxes that died have none.
    from kata.runtime.network.release import detach

    inode, index, path = value.split(" ", 2)
    detach(path, int(inode), int(index))


def _remove_interface(value: str) -> None:
    # As above.
    from kata.runtime.network.release import remove

    inode, index, path = value.split(" ", 2)
    remove(path, int(inode), int(index))


def _remove_group(directory: str) -> None:
    """Remove a control group, unless others have made groups in it meanwhile: then it is theirs. Idempotent."""
    deadline = time.monotonic() + _GROUP_DEADLINE_S
    while True:
        try:
            os.rmdir(directory)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        with os.scandir(directory) as entries:
            if any(entry.is_dir(follow_symlinks=False) for entry in entries):
                return
        time.sleep(0.005)


def _run_hooks(value: str) -> None:
    # Not among the imports: few containers have any.
    from kata.runtime.sandbox.hooks import run_late

    container_id, directory, bundle = value.split(" ", 2)
    run_late(container_id, directory, bundle)


def _remove_cni(record: str) -> None:
    # Not among the imports: only `kata run --network` has one.
    from pathlib import Path

    from kata.errors import KataError
    from kata.runtime.network.cni import delete

    try:
        delete(Path(record))
    except KataError as error:
        raise OSError(errno.EIO, error.message) from error


def _return_device(value: str) -> None:
    # Not among the imports: few pods have a network card.
    from kata.runtime.devices.binding import give_back

    address, _, override = value.partition(" ")
    give_back(address, override)


_GIVE_BACK = {
    NETWORK: _detach,
    INTERFACE: _remove_interface,
    PROCESS: _kill_processes,
    FILE: _unlink,
    TREE: remove_tree,
    CGROUP: _remove_group,
    PCI: _return_device,
    HOOKS: _run_hooks,
    CNI: _remove_cni,
}
