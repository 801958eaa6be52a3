"""What a plug holds after it failed; QEMU is a stand-in, as the real one (tests/vm/test_hotplug.py) obeys."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable

import pytest
from qemu.qmp import QMPClient

from kata.errors import DeadlineExceeded, FailedPrecondition, KataError
from kata.runtime.hypervisor.base import VmPlan
from kata.runtime.hypervisor.devices import BlockDevice
from kata.runtime.hypervisor.qemu.device_commands import Command
from kata.runtime.hypervisor.qemu.hotplug import EmptyDisk, Hotplug
from kata.runtime.hypervisor.qemu.slots import Slot, Slots


class Qemu:
    """Carries out commands, but for one that it answers with `error` the first time, or after `go`.

    Attributes:
        refused: its name, or the id of what it adds.
    """

    def __init__(self) -> None:
        self.refused = "scsi0"
        self.done: list[Command] = []
        self.error: KataError | None = None
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, command: Command) -> object:
        if self.refused in (command.name, command.arguments.get("id")):
            await self.go.wait()
            if self.error:
                error, self.error = self.error, None
                raise error
        self.done.append(command)
        return None

    def controllers(self) -> list[str]:
        """The buses and addresses at which the controller was plugged."""
        plugged = (command.arguments for command in self.done if command.name == "device_add")
        return [f"{found['bus']} {found['addr']}" for found in plugged if found["id"] == "scsi0"]


@pytest.fixture
def qemu() -> Qemu:
    return Qemu()


@pytest.fixture
async def hotplug(qemu: Qemu, make_plan: Callable[..., VmPlan]) -> AsyncIterator[Hotplug]:
    hotplug = Hotplug("box", Slots(make_plan()), QMPClient("box"), qemu)
    yield hotplug
    hotplug.close()


def scsi(name: str) -> BlockDevice:
    return BlockDevice(id=name, fd=os.memfd_create(name), driver="virtio-scsi")


async def test_a_slot_that_qemu_refused_is_used_again(qemu: Qemu, hotplug: Hotplug) -> None:
    qemu.error = FailedPrecondition("no")
    with pytest.raises(FailedPrecondition):
        await hotplug.plug(scsi("one"))
    assert await hotplug.plug(scsi("two")) == "0:0"
    assert qemu.controllers() == ["bridge0 0x1"]


async def test_a_slot_in_which_there_may_be_a_device_is_not(qemu: Qemu, hotplug: Hotplug) -> None:
    qemu.error = DeadlineExceeded("no answer")
    with pytest.raises(DeadlineExceeded):
        await hotplug.plug(scsi("one"))
    assert await hotplug.plug(scsi("two")) == "0:0"
    assert qemu.controllers() == ["bridge0 0x2"]


async def test_who_is_cancelled_leaves_the_controller_to_the_others(qemu: Qemu, hotplug: Hotplug) -> None:
    qemu.go.clear()
    first = asyncio.create_task(hotplug.plug(scsi("one")))
    second = asyncio.create_task(hotplug.plug(scsi("two")))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    qemu.go.set()
    assert await second == "0:0"
    assert qemu.controllers() == ["bridge0 0x1"]


class TestEmptyDisks:
    """One that is read-only, and one that is not."""

    EMPTY = (
        EmptyDisk("empty0", Slot(0xA, 0x1F), read_only=True),
        EmptyDisk("empty1", Slot(0xA, 0x1E), read_only=False),
    )

    @pytest.fixture
    async def hotplug(self, qemu: Qemu, make_plan: Callable[..., VmPlan]) -> AsyncIterator[Hotplug]:
        hotplug = Hotplug("box", Slots(make_plan()), QMPClient("box"), qemu, self.EMPTY)
        yield hotplug
        hotplug.close()

    async def test_each_gets_what_suits_it(self, hotplug: Hotplug) -> None:
        paths = [
            await hotplug.plug(disk("a", read_only=False)),
            await hotplug.plug(disk("b", read_only=True)),
            await hotplug.plug(disk("c", read_only=True)),
        ]
        assert paths == ["0a/1e", "0a/1f", "09/01"], "the last one is plugged"

    async def test_one_whose_size_counts_is_plugged(self, hotplug: Hotplug) -> None:
        assert await hotplug.plug(disk("a", any_size=False)) == "09/01"
        assert await hotplug.plug(disk("b", serial="b")) == "09/02"

    async def test_one_that_is_unplugged_is_emptied_and_filled_again(self, qemu: Qemu, hotplug: Hotplug) -> None:
        await hotplug.plug(disk("a"))
        await hotplug.unplug("a", 10)
        drives = [command.arguments["value"] for command in qemu.done if command.name == "qom-set"]
        assert drives == ["disk1", "empty0"]
        assert [command.name for command in qemu.done[-2:]] == ["blockdev-del", "remove-fd"]
        assert await hotplug.plug(disk("b")) == "0a/1f"

    async def test_one_that_qemu_refuses_to_fill_stays_empty(self, qemu: Qemu, hotplug: Hotplug) -> None:
        qemu.refused, qemu.error = "qom-set", FailedPrecondition("no")
        with pytest.raises(FailedPrecondition):
            await hotplug.plug(disk("a"))
        assert [command.name for command in qemu.done] == ["add-fd", "blockdev-add", "blockdev-del", "remove-fd"]
        assert await hotplug.plug(disk("b")) == "0a/1f"


def disk(name: str, *, read_only: bool = True, any_size: bool = True, serial: str = "") -> BlockDevice:
    return BlockDevice(id=name, fd=os.memfd_create(name), read_only=read_only, any_size=any_size, serial=serial)
