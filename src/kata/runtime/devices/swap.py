"""Swap of the guest, on disks, for containers that request it.

The annotations are Kata's:

    io.katacontainers.container.resource.swappiness        above 0: the container may be swapped
    io.katacontainers.container.resource.swap_in_bytes     limit of memory and swap together, as in the runtime-spec

The files are unnamed (O_TMPFILE), so that none can stay.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kata.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from kata.oci.spec import Spec
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.hypervisor.base import VirtualMachine
from kata.runtime.hypervisor.devices import BlockDevice

_PREFIX = "io.katacontainers.container.resource."
SWAPPINESS, SWAP_IN_BYTES = f"{_PREFIX}swappiness", f"{_PREFIX}swap_in_bytes"
_MAX_SWAPPINESS = 200
_MAX_BYTES = 1 << 50
#: The granularity of a guest's swap; mkswap needs at least ten pages.
_GRAIN = 1 << 20
_FORMAT_TIMEOUT_S = 30.0


def wanted(spec: Spec, memory_mib: int) -> int:
    """Bytes of swap that a container requests; 0 for none.

    Without `swap_in_bytes`, it is as much as the container's memory limit; without a limit, as much as the VM's memory.

    Args:
        spec: the container's.
        memory_mib: the VM's memory in MiB.

    Raises:
        InvalidArgument: an annotation is not a number, or out of range.
    """
    annotations: Mapping[str, str] = spec.get("annotations") or {}
    swappiness = _number(annotations, SWAPPINESS, _MAX_SWAPPINESS)
    total = _number(annotations, SWAP_IN_BYTES, _MAX_BYTES)
    if not swappiness:
        return 0
    limit = _limit(spec)
    if total is None:
        return limit or memory_mib << 20
    return max(0, total - limit)


def with_limit(spec: Spec, swap: int) -> Spec:
    """The container's spec with a limit of memory and swap together, if it has a limit of memory."""
    if not swap or not (limit := _limit(spec)):
        return spec
    linux: dict[str, Any] = {**(spec.get("linux") or {})}
    resources = {**(linux.get("resources") or {})}
    resources["memory"] = {**(resources.get("memory") or {}), "swap": limit + swap}
    linux["resources"] = resources
    edited: Any = {**spec, "linux": linux}
    return edited  # type: ignore[no-any-return]


def _limit(spec: Spec) -> int:
    resources: Mapping[str, Any] = (spec.get("linux") or {}).get("resources") or {}
    return max(0, int((resources.get("memory") or {}).get("limit") or 0))


def _number(annotations: Mapping[str, str], name: str, most: int) -> int | None:
    if name not in annotations:
        return None
    text = str(annotations[name])
    if not text.isdecimal() or len(text) > len(str(most)) or int(text) > most:
        raise InvalidArgument(f"annotation {name}: invalid number {text[:40]!r} (0 to {most})")
    return int(text)


class Swap:
    """The swap of one sandbox's guest. It never shrinks.

    Args:
        vm: the sandbox's.
        agent: the sandbox's.
        directory: where the files are.
    """

    def __init__(self, vm: VirtualMachine, agent: AgentClient, directory: Path) -> None:
        self._vm = vm
        self._agent = agent
        self._directory = directory
        self._has: dict[str, int] = {}
        self._bytes = 0
        self._count = 0
        self._lock = asyncio.Lock()

    async def provide(self, container_id: str, size: int) -> None:
        """Provide the guest with swap for one more container.

        Args:
            container_id: the container's.
            size: bytes.

        Raises:
            ResourceExhausted: the host's disk has no room.
            FailedPrecondition: the file cannot be created, or the guest cannot use it.
            KataError: as `VirtualMachine.plug`.
        """
        async with self._lock:
            missing = sum(self._has.values()) + size - self._bytes
            if missing > 0:
                missing = -(-missing // _GRAIN) * _GRAIN
                fd = self._make(missing)
                try:
                    await _format(fd)
                    self._count += 1
                    await self._plug(BlockDevice(id=f"swap-{self._count}", fd=fd))
                finally:
                    os.close(fd)
                self._bytes += missing
            self._has[container_id] = size

    async def _plug(self, device: BlockDevice) -> None:
        path = await self._vm.plug(device)
        try:
            await self._agent.add_swap(path)
        except BaseException:
            # The guest does not use it, and releases it.
            await asyncio.shield(asyncio.ensure_future(self._vm.unplug(device.id)))
            raise

    def leave(self, container_id: str) -> None:
        """Free the swap of a container that is gone, for others."""
        self._has.pop(container_id, None)

    def _make(self, size: int) -> int:
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            space = os.statvfs(self._directory)
            if space.f_bavail * space.f_frsize < size:
                raise ResourceExhausted(f"{self._directory} has no room for {size >> 20} MiB of swap")
            fd = os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FailedPrecondition(
                f"cannot create swap in {self._directory}: {error.strerror}", hint="see guest_swap_path"
            ) from error
        try:
            os.truncate(fd, size)
        except BaseException:
            os.close(fd)
            raise
        return fd


async def _format(fd: int) -> None:
    """Write the signature of swap, with mkswap(8).

    Raises:
        FailedPrecondition: mkswap fails; the message ends with the last 200 characters that it said.
        TimeoutError: it did not end within `_FORMAT_TIMEOUT_S` seconds, and was killed.
        OSError: it cannot be executed.
    """
    process = await asyncio.create_subprocess_exec(
        "mkswap",
        "--quiet",
        f"/proc/self/fd/{fd}",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=(fd,),
    )
    try:
        async with asyncio.timeout(_FORMAT_TIMEOUT_S):
            _, said = await process.communicate()
    except BaseException:
        process.kill()
        raise
    if process.returncode:
        raise FailedPrecondition(
            f"mkswap exited with status {process.returncode}: {said.decode(errors='replace')[-200:]}"
        )
