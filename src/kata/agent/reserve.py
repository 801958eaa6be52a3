"""What the containers may use of the guest together, so that the agent always has something left.

All containers are in one cgroup, and its limits are below what the guest has. Whatever they do, it is one of their own
processes that is killed or cannot fork: the agent answers, and an exec still works. The table is in
docs/guide/resources.md.

A tmpfs needs more than that: its files stay when their writer has been killed, and would leave nothing to others. So
one that has no size of its own gets half of what the others of its kind have left, instead of half of the guest's
memory each.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst, and filesystems/tmpfs.rst for sizes.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Sequence

from kata.linux import cgroup

log = logging.getLogger(__name__)

_MIB = 1 << 20
#: Of the memory that is available when the agent has started, it keeps an eighth, and no more than this.
_MAX_RESERVE = 64 * _MIB
#: Bytes of the memory that the guest has booted with, for each process or thread. Stacks and page tables cannot be in
#: hot-plugged memory, which has to be movable.
_BYTES_PER_PID = 64 << 10
#: An eighth of the containers' memory is for their processes, even if every tmpfs is full.
_SHARE_OF_PROCESSES = 8
#: A tmpfs gets no less than an eighth of the rest. More than four may be too much together, but each is of use.
_SMALLEST_TMPFS = 8

_SIZE = re.compile(r"size=(\d+)([kmgt]?)(%?)", re.IGNORECASE)
_FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def memory_limit(total: int, available: int) -> int:
    """Bytes that the containers may use.

    Args:
        total: bytes of memory of the guest.
        available: how many of them are available before there is a container.
    """
    return available - min(total // 8, _MAX_RESERVE)


class Reserve:
    """The limits of the containers' common cgroup. Without `set_up` there are none.

    Args:
        directory: of that cgroup.
        meminfo: the file that says how much memory there is.
    """

    def __init__(self, directory: str = "", meminfo: str = "/proc/meminfo") -> None:
        self._directory = directory
        self._meminfo = meminfo
        #: What the limit is less than the guest's memory; 0 before `set_up`.
        self._kept = 0
        self._limit = 0
        self._promised = 0
        # Storages are mounted in threads.
        self._lock = threading.Lock()

    def set_up(self) -> None:
        """Make the cgroup and limit it. To be called before there is a container.

        Raises:
            OSError: the kernel refuses.
        """
        os.makedirs(self._directory, exist_ok=True)
        cgroup.enable_controllers(self._directory)
        total, available = self._memory()
        cgroup.write(self._directory, "pids.max", str(total // _BYTES_PER_PID))
        self._kept = total - memory_limit(total, available)
        self.refresh()

    def refresh(self) -> None:
        """Follow the guest's memory, which has been hot-plugged, unplugged, or made into huge pages.

        The limit is never set below what is used already: that would kill.

        Raises:
            OSError: the kernel refuses.
        """
        if not self._kept:
            return
        with self._lock:
            limit = self._memory()[0] - self._kept
            if limit != self._limit:
                used = cgroup.read_value(self._directory, "memory.current")
                cgroup.write(self._directory, "memory.max", str(max(limit, used)))
                self._limit = limit

    def fit(self, options: Sequence[str]) -> tuple[list[str], int]:
        """Limit the size of a tmpfs.

        Args:
            options: of the mount.

        Returns:
            The options to mount it with, and bytes for `give_back`.
        """
        room = self._limit - self._limit // _SHARE_OF_PROCESSES
        if not room or "ro" in options or any(option.startswith("nr_blocks=") for option in options):
            return list(options), 0
        sizes = [option for option in options if option.startswith("size=")]
        if sizes and self._bytes(sizes[-1]) <= room:
            return list(options), 0
        with self._lock:
            size = max((room - self._promised) // 2, room // _SMALLEST_TMPFS)
            self._promised += size
        if sizes:
            log.info("a tmpfs with %s gets %s bytes: the guest's memory is smaller", sizes[-1], size)
        return [*(option for option in options if option not in sizes), f"size={size}"], size

    def give_back(self, size: int) -> None:
        """A tmpfs is gone. `size` is what `fit` has returned for it."""
        with self._lock:
            self._promised -= size

    def _bytes(self, option: str) -> int:
        """Bytes of a size; 0 for one that is malformed, which the mount will tell."""
        parsed = _SIZE.fullmatch(option)
        if not parsed:
            return 0
        number = int(parsed[1]) * _FACTORS[parsed[2].lower()]
        return number * self._memory()[0] // 100 if parsed[3] else number

    def _memory(self) -> tuple[int, int]:
        """Bytes of memory that can be had as pages, and of it what is available."""
        with open(self._meminfo, encoding="ascii") as file:
            fields = {key: int(value.split()[0]) << 10 for key, _, value in (line.partition(":") for line in file)}
        return fields["MemTotal"] - fields.get("Hugetlb", 0), fields["MemAvailable"]
