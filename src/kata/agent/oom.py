"""Out-of-memory kills: noticed through each cgroup's memory.events, reported in order.

The kernel announces a change of the file by EPOLLPRI (Documentation/admin-guide/cgroup-v2.rst), which asyncio's loop
does not watch for, so the files sit in an epoll of their own that the loop watches.
"""

from __future__ import annotations

import asyncio
import os
import select

#: A pod whose containers are killed in a loop while nobody reads the events must not fill memory; the oldest is lost.
_MAX_EVENTS = 256


class OomWatcher:
    """Watches the cgroups of the containers. Use within a running event loop; `close` at the end."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._events: asyncio.Queue[str] = asyncio.Queue()
        self._kills: dict[int, int] = {}
        self._files: dict[str, int] = {}
        self._names: dict[int, str] = {}
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._on_event)

    def close(self) -> None:
        """Stop watching everything."""
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        for container_id in list(self._files):
            self.forget(container_id)
        self._epoll.close()

    def watch(self, container_id: str, cgroup: str) -> None:
        """Report kills in a cgroup as the container's; without a memory controller there are none.

        Args:
            container_id: names the container in events.
            cgroup: the cgroup's directory, absolute.

        Raises:
            OSError: its memory.events cannot be opened.
        """
        try:
            fd = os.open(f"{cgroup}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        self._files[container_id] = fd
        self._names[fd] = container_id
        self._kills[fd] = _count(fd)
        self._epoll.register(fd, select.EPOLLPRI)

    def forget(self, container_id: str) -> None:
        """Stop watching a container."""
        fd = self._files.pop(container_id, None)
        if fd is not None:
            self._epoll.unregister(fd)
            del self._names[fd], self._kills[fd]
            os.close(fd)

    def check(self, container_id: str) -> None:
        """Look now: called when a process has ended, so that a kill is reported before the exit."""
        fd = self._files.get(container_id)
        if fd is None:
            return
        kills = _count(fd)
        if kills > self._kills[fd]:
            self._kills[fd] = kills
            if self._events.qsize() >= _MAX_EVENTS:
                self._events.get_nowait()
            self._events.put_nowait(container_id)

    async def next(self) -> str:
        """The id of the container of the next kill."""
        return await self._events.get()

    def _on_event(self) -> None:
        for fd, _ in self._epoll.poll(0):
            if fd in self._names:
                self.check(self._names[fd])


def _count(fd: int) -> int:
    """The kills so far; reading from the start also re-arms the notification."""
    try:
        text = os.pread(fd, 4096, 0).decode()
    except OSError:
        return 0  # ENODEV: the cgroup has been removed
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == "oom_kill":
            return int(value)
    return 0
