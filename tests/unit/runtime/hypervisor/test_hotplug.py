"""What a plug holds after it failed; QEMU is a stand-in, as the real one (tests/vm/test_hotplug.py) obeys."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
from qemu.qmp import QMPClient

from kata.errors import DeadlineExceeded, FailedPrecondition, KataError
from kata.runtime.hypervisor.devices import BlockDevice
from kata.runtime.hypervisor.qemu.device_commands import Command
from kata.runtime.hypervisor.qemu.hotplug import Hotplug
from kata.runtime.hypervisor.qemu.slots import Slots


class Qemu:
    """Carries out commands, but for one that it answers with `error` the first time, or after `go`."""

    def __init__(self) -> None:
        self.done: list[Command] = []
        self.error: KataError | None = None
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, command: Command) -> object:
        if command.arguments.get("id") == "scsi0":
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
async def hotplug(qemu: Qemu) -> AsyncIterator[Hotplug]:
    hotplug = Hotplug("box", Slots(), QMPClient("box"), qemu)
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
