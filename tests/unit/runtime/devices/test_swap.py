"""How much swap a container asks for, and what its limits become."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest

from kata.errors import FailedPrecondition, InvalidArgument
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.devices.swap import SWAP_IN_BYTES, SWAPPINESS, Swap, wanted, with_limit
from kata.runtime.hypervisor.base import VirtualMachine
from kata.runtime.hypervisor.devices import BlockDevice

MIB = 1 << 20


def spec(limit: int = 0, **annotations: str) -> Any:
    names = {"swappiness": SWAPPINESS, "total": SWAP_IN_BYTES}
    memory = {"limit": limit} if limit else {}
    return {
        "annotations": {names[name]: value for name, value in annotations.items()},
        "linux": {"resources": {"memory": memory, "pids": {"limit": 7}}},
    }


@pytest.mark.parametrize(
    ("asks", "size"),
    [
        ({}, None),
        (spec(), None),
        (spec(limit=MIB), None),
        (spec(total="999"), None),
        (spec(swappiness="0", total="999"), None),
        (spec(swappiness="60"), 2048 * MIB),
        (spec(limit=64 * MIB, swappiness="60"), 64 * MIB),
        (spec(limit=64 * MIB, swappiness="1", total=str(100 * MIB)), 36 * MIB),
        (spec(limit=64 * MIB, swappiness="200", total=str(MIB)), None),
        (spec(swappiness="60", total=str(100 * MIB)), 100 * MIB),
        (spec(limit=-1, swappiness="60"), 2048 * MIB),
    ],
)
def test_what_a_container_asks_for(asks: Any, size: int | None) -> None:
    assert wanted(asks, 2048) == (size or 0)


@pytest.mark.parametrize("bad", [{"swappiness": "201"}, {"swappiness": "-1"}, {"total": "1G"}, {"total": "9" * 5000}])
def test_what_no_number_can_be(bad: dict[str, str]) -> None:
    with pytest.raises(
        InvalidArgument, match=r"annotation io\.katacontainers\.container\.resource\.\w+: invalid number"
    ):
        wanted(spec(0, **bad), 2048)


def test_the_limit_of_memory_and_swap() -> None:
    limited = with_limit(spec(limit=64 * MIB), 36 * MIB)
    assert limited["linux"]["resources"] == {"memory": {"limit": 64 * MIB, "swap": 100 * MIB}, "pids": {"limit": 7}}
    assert with_limit(spec(), 36 * MIB) == spec()
    assert with_limit(spec(limit=MIB), 0) == spec(limit=MIB)


class Vm:
    """Notes what is plugged, and is its guest's agent, too; the real ones are in tests/integration."""

    def __init__(self) -> None:
        self.plugged: dict[str, int] = {}
        self.refuses = False

    async def plug(self, device: BlockDevice) -> str:
        self.plugged[device.id] = os.fstat(device.fd).st_size
        return "09/01"

    async def unplug(self, device_id: str) -> None:
        del self.plugged[device_id]

    async def add_swap(self, path: str) -> None:
        if self.refuses:
            raise FailedPrecondition("no")


async def test_swap_is_shared_and_what_the_guest_cannot_use_is_taken_back(tmp_path: Path) -> None:
    vm = Vm()
    swap = Swap(cast(VirtualMachine, vm), cast(AgentClient, vm), tmp_path)
    vm.refuses = True
    with pytest.raises(FailedPrecondition, match="no"):
        await swap.provide("a", 2 * MIB)
    assert vm.plugged == {}
    vm.refuses = False
    await swap.provide("a", 2 * MIB)
    await swap.provide("b", MIB + 1)
    assert list(vm.plugged.values()) == [2 * MIB, 2 * MIB]
    swap.leave("a")
    await swap.provide("c", 2 * MIB)
    assert len(vm.plugged) == 2, "that of the container that has gone"
    assert list(tmp_path.iterdir()) == []
