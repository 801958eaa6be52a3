"""Hot-plug and unplug of a VM's vCPUs and memory.

Memory comes in DIMMs, one for each growth, that can be unplugged as a whole. The wait for a guest to release something
is bounded; the request stays, so that a slow guest's release still counts later.

References: QEMU's docs/memory-hotplug.txt and docs/system/cpu-hotplug.rst; qemu-qmp-ref(7):
query-hotpluggable-cpus, device_add, object-add, query-memory-devices, query-cpus-fast.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from kata.errors import FailedPrecondition, KataError, ResourceExhausted
from kata.runtime.hypervisor.base import HUGE_PAGE_MIB, Resized, VmPlan
from kata.runtime.hypervisor.qemu.device_commands import Command

log = logging.getLogger(__name__)

#: The unit in which Linux brings memory online on x86-64, in MiB.
MEMORY_BLOCK_MIB = 128
#: Seconds between two checks whether the guest has released something; one takes half a millisecond.
_POLL_S = 0.02

Execute = Callable[[Command], Awaitable[object]]


class Resizer:
    """The size of one VM.

    Args:
        plan: the VM.
        execute: runs a command, with a deadline, and raises `kata.errors`.
    """

    def __init__(self, plan: VmPlan, execute: Execute) -> None:
        self._plan = plan
        self._execute = execute
        self._lock = asyncio.Lock()
        self._number = 0

    async def resize(self, vcpus: int, memory_mib: int, timeout: float) -> Resized:
        """Resize the VM within its plan's limits; arguments and errors as of `VirtualMachine.resize`."""
        if not self._plan.architecture.resizes:
            return Resized(self._plan.vcpus, self._plan.memory_mib)
        async with self._lock:
            deadline = asyncio.get_running_loop().time() + timeout
            has_vcpus, new_vcpus = await self._resize_vcpus(vcpus, deadline)
            has_memory, new_memory = await self._resize_memory(memory_mib, deadline)
            return Resized(has_vcpus, has_memory, new_vcpus, new_memory)

    async def _resize_vcpus(self, wanted: int, deadline: float) -> tuple[int, int]:
        wanted = min(max(wanted, self._plan.vcpus), self._plan.max_vcpus or self._plan.vcpus)
        slots = await self._cpu_slots()
        # The list begins with the highest number.
        free = [slot for slot in reversed(slots) if "qom-path" not in slot]
        plugged = [slot for slot in slots if _device_of(slot)]
        has = len(slots) - len(free)
        if self._plan.accelerator == "tcg":
            # With TCG of QEMU 7.2, a guest hung after a vCPU was plugged, and QEMU crashed after one was unplugged.
            return has, 0
        added = free[: max(0, wanted - has)]
        for slot in added:
            self._number += 1
            await self._execute(
                Command("device_add", {"driver": slot["type"], "id": f"vcpu{self._number}", **slot["props"]})
            )
        if wanted < has:
            leaving = [_device_of(slot) for slot in plugged[: has - wanted]]
            has -= await self._unplug(leaving, self._plugged_cpus, deadline)
        return has + len(added), len(added)

    async def _cpu_slots(self) -> list[dict[str, Any]]:
        return await self._list("query-hotpluggable-cpus")

    async def _plugged_cpus(self) -> set[str]:
        return {_device_of(slot) for slot in await self._cpu_slots()} - {""}

    async def _resize_memory(self, wanted: int, deadline: float) -> tuple[int, bool]:
        dimms = await self._dimms()
        has = self._plan.memory_mib + sum(dimms.values())
        if wanted > has:
            size = -(-(wanted - has) // MEMORY_BLOCK_MIB) * MEMORY_BLOCK_MIB
            room = (self._plan.max_memory_mib or self._plan.memory_mib) - has
            size = min(size, room // MEMORY_BLOCK_MIB * MEMORY_BLOCK_MIB)
            if size <= 0:
                return has, False
            await self._plug_dimm(size, len(dimms))
            return has + size, True
        if self._plan.accelerator == "tcg":
            # With TCG of QEMU 10, programs in the guest crash once memory is plugged where some had been unplugged.
            return has, False
        leaving = []
        for name, size in sorted(dimms.items(), key=lambda dimm: dimm[1], reverse=True):
            if has - size >= wanted:
                leaving.append(name)
                has -= size
        if leaving:
            gone = await self._unplug(leaving, self._plugged_dimms, deadline)
            if gone < len(leaving):
                has = self._plan.memory_mib + sum((await self._dimms()).values())
        return has, False

    async def _plug_dimm(self, size: int, used: int) -> None:
        if used >= self._plan.memory_slots:
            raise ResourceExhausted(
                f"no memory slot of {self._plan.sandbox_id} is free for {size} MiB",
                hint="raise memory_slots in the configuration",
            )
        self._number += 1
        name = f"dimm{self._number}"
        backend = f"{name}-memory"
        await self._execute(Command("object-add", {**_backend(self._plan), "id": backend, "size": size << 20}))
        try:
            await self._execute(Command("device_add", {"driver": "pc-dimm", "id": name, "memdev": backend}))
        except KataError:
            await self._execute(Command("object-del", {"id": backend}))
            raise

    async def _dimms(self) -> dict[str, int]:
        """The hot-plugged DIMMs, with their sizes in MiB."""
        return {
            device["data"]["id"]: device["data"]["size"] >> 20
            for device in await self._list("query-memory-devices")
            if device.get("type") == "dimm"
        }

    async def _plugged_dimms(self) -> set[str]:
        return set(await self._dimms())

    async def _unplug(self, leaving: list[str], present: Callable[[], Awaitable[set[str]]], deadline: float) -> int:
        """Have the guest release devices, and wait; returns how many it has released."""
        for name in leaving:
            try:
                await self._execute(Command("device_del", {"id": name}))
            except FailedPrecondition as error:
                log.debug("%s", error)  # it was asked before, and takes its time
        loop = asyncio.get_running_loop()
        # Polled, because an earlier release has had its event already.
        while (staying := await present() & set(leaving)) and loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        if staying:
            log.info("the guest of %s has not released %s", self._plan.sandbox_id, ", ".join(sorted(staying)))
        for name in set(leaving) - staying:
            if name.startswith("dimm"):
                await self._execute(Command("object-del", {"id": f"{name}-memory"}))
        return len(leaving) - len(staying)

    async def vcpu_threads(self) -> list[int]:
        """Ids of the threads that run the vCPUs, in QEMU's own pid namespace."""
        return [int(cpu["thread-id"]) for cpu in await self._list("query-cpus-fast")]

    async def _list(self, query: str) -> list[dict[str, Any]]:
        answer = await self._execute(Command(query))
        if not isinstance(answer, list):
            raise FailedPrecondition(f"qemu of {self._plan.sandbox_id}: {query}: answer is not a list")
        return answer


def _backend(plan: VmPlan) -> dict[str, object]:
    """What a DIMM's memory is, like that of the VM at boot."""
    if not plan.huge_pages:
        return {"qom-type": "memory-backend-ram"}
    huge = {"hugetlb": True, "hugetlbsize": HUGE_PAGE_MIB << 20, "prealloc": True}
    return {"qom-type": "memory-backend-memfd", "share": plan.shares_memory, **huge}


def _device_of(slot: dict[str, Any]) -> str:
    """The id of the device in a vCPU slot; "" if the slot is free or was filled at boot."""
    path = str(slot.get("qom-path", ""))
    return path.removeprefix("/machine/peripheral/") if path.startswith("/machine/peripheral/") else ""
