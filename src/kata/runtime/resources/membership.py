"""This process's membership of a sandbox's host cgroup, which it enters and leaves beside other things.

Each move waits for the kernel: 20 ms that neither the start of a VM nor its end has to wait for.
"""

from __future__ import annotations

import asyncio

from kata.runtime.resources.host_cgroup import HostCgroup


class Membership:
    """Enters the cgroup as soon as it is made, in an event loop.

    Attributes:
        cgroup: the cgroup.
    """

    def __init__(self, cgroup: HostCgroup) -> None:
        self.cgroup = cgroup
        self._entering = asyncio.create_task(asyncio.to_thread(cgroup.enter), name="enter the host cgroup")
        self._leaving: asyncio.Task[None] | None = None

    async def entered(self) -> None:
        """Wait until this process and its children are in the cgroup.

        Raises:
            FailedPrecondition: the cgroup cannot be made.
        """
        await asyncio.shield(self._entering)

    def begin_leaving(self) -> asyncio.Task[None]:
        """Begin to move back to where this process was. Idempotent; must run in an event loop."""
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._leave(), name="leave the host cgroup")
        return self._leaving

    async def _leave(self) -> None:
        await asyncio.gather(self._entering, return_exceptions=True)
        await asyncio.to_thread(self.cgroup.leave)

    async def leave(self) -> None:
        """Wait until this process has left: the cgroup can be removed once nothing else is in it either."""
        await self.begin_leaving()
