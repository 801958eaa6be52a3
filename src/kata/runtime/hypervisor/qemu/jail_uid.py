"""A user and group id for one VM's QEMU, that nothing else on the host has.

Each id of the range is a byte of a file in the host's state directory, and whoever has the id has that byte locked. The
kernel drops the lock with the process, whatever killed it. Where the search begins is random, so that an id is not
given away again while a QEMU that was killed a moment ago is still ending.

References: fcntl(2), "Open file description locks"; user_namespaces(7) on uid_map.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence

from kata.errors import FailedPrecondition, ResourceExhausted
from kata.runtime.ledger.journal import STATE_ROOT, make_directory

_FILE = "jail-uids"
#: struct flock: type, whence, start, length, pid.
_FLOCK = "hhqqi4x"


class JailUid:
    """A user and group id, this process's until `release` or its death.

    Args:
        ids: the range.
        root: the host's state directory.

    Attributes:
        number: the id.

    Raises:
        FailedPrecondition: this process's user namespace does not have the range.
        ResourceExhausted: all are in use.
        OSError: the file cannot be locked.
    """

    def __init__(self, ids: range, root: str = STATE_ROOT) -> None:
        _check_mapped(ids)
        make_directory(root)
        self._fd = os.open(os.path.join(root, _FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self.number = self._lock_one(ids)
        except BaseException:
            self.release()
            raise

    def _lock_one(self, ids: Sequence[int]) -> int:
        first = int.from_bytes(os.urandom(4), "little") % len(ids)
        for index in range(first, first + len(ids)):
            number = ids[index % len(ids)]
            try:
                lock = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, lock)
                return number
            except BlockingIOError:
                continue
        raise ResourceExhausted(
            f"all {len(ids)} user ids for QEMU are in use ({ids[0]}-{ids[-1]})", hint="enlarge jail_uid_range"
        )

    def release(self) -> None:
        """Leave it to others. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _check_mapped(ids: range) -> None:
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}", encoding="ascii") as file:
            spans = [[int(word) for word in line.split()] for line in file]
        if not any(first <= ids[0] and ids[-1] < first + count for first, _, count in spans):
            raise FailedPrecondition(
                f"this user namespace does not have the ids {ids[0]}-{ids[-1]} for QEMU",
                hint='set jail_uid_range to ids that it has, or to "" to run QEMU as root',
            )
