"""The direct volumes of a sandbox: their storage driver asks for usage, and lets them grow."""

from __future__ import annotations

import os
from collections.abc import Mapping

from kata.errors import InvalidArgument, NotFound
from kata.protocols import csi_pb2
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.devices.block import Disks
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import FILE
from kata.runtime.storage.direct_volume import guest_point, user_file

_MAX_SIZE = 1 << 60


class Volumes:
    """The direct volumes of one sandbox.

    Args:
        sandbox_id: the sandbox's.
        ledger, disks, agent: the sandbox's.
    """

    def __init__(self, sandbox_id: str, ledger: Ledger, disks: Disks, agent: AgentClient) -> None:
        self._id = sandbox_id
        self._ledger = ledger
        self._disks = disks
        self._agent = agent
        self._devices: dict[str, str] = {}

    def add(self, volumes: Mapping[str, str]) -> None:
        """Add volumes of a container: paths on the host, each with its disk.

        Raises:
            OSError: the volume cannot be marked as used.
        """
        for path, device in volumes.items():
            point = guest_point(path)
            if point not in self._devices:
                self._mark(path)
            self._devices[point] = device

    def _mark(self, path: str) -> None:
        """Create the file by which the storage driver finds the sandbox; it exists as long as the sandbox."""
        file = user_file(path, os.path.basename(self._ledger.directory))
        self._ledger.hold(FILE, file)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))

    async def stats(self, path: str) -> csi_pb2.VolumeStatsResponse:
        """How full a volume is, from the agent. Raises NotFound: the sandbox has no such volume."""
        self._device(path)
        return await self._agent.volume_stats(guest_point(path))

    async def resize(self, path: str, size: int) -> None:
        """Grow a volume and its file system to `size` bytes.

        Raises:
            NotFound: the sandbox has no such volume.
            InvalidArgument: the size is out of range, or smaller than the volume.
            FailedPrecondition: its block device is smaller, or the guest cannot grow the file system.
        """
        device = self._device(path)
        if not 0 < size <= _MAX_SIZE:
            raise InvalidArgument(f"volume {path}: invalid size {size} (1 to {_MAX_SIZE} bytes)")
        await self._disks.grow(device, size)
        await self._agent.resize_volume(guest_point(path), size)

    def _device(self, path: str) -> str:
        try:
            return self._devices[guest_point(path)]
        except KeyError:
            raise NotFound(f"sandbox {self._id} has no direct volume {path}") from None
