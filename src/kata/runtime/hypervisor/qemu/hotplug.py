"""Hot-plug and unplug of a VM's devices.

A plug is a list of QMP commands each of which has an inverse: if one fails, those before it are undone. An unplug asks
the guest, which may take its time or refuse: the wait is bounded, and the device's backend and slot are released when
the guest releases the device, even if nobody waits for it any more.

Reference: QEMU's docs/pcie.txt; qemu-qmp-ref(7): device_del, DEVICE_DELETED.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kata.errors import AlreadyExists, DeadlineExceeded, FailedPrecondition, KataError, NotFound, Unavailable
from kata.runtime.hypervisor.devices import BlockDevice, Device, NetworkDevice, VfioDevice
from kata.runtime.hypervisor.qemu import device_commands as commands
from kata.runtime.hypervisor.qemu.device_commands import Command, FileSystemDevice, Step
from kata.runtime.hypervisor.qemu.slots import Slot, Slots

if TYPE_CHECKING:
    from qemu.qmp import EventListener, QMPClient

log = logging.getLogger(__name__)

#: Seconds for the guest to release a device that was plugged in part.
_ROLLBACK_TIMEOUT_S = 10.0
#: Seconds after which the guest is asked again: a request that comes before its kernel listens is lost.
_RETRY_S = 1.0
_DELETED = "DEVICE_DELETED"

Execute = Callable[[Command], Awaitable[object]]


@dataclass(frozen=True)
class EmptyDisk:
    """A disk that the VM has from its boot, without content.

    Attributes:
        name: QEMU's, of the device and of its block node.
        slot: where it is.
        read_only: whether what is put into it has to be read-only.
    """

    name: str
    slot: Slot
    read_only: bool


@dataclass(eq=False)
class _Plugged:
    """What one device holds.

    Attributes:
        id: the device's.
        slot: its PCI slot, or None.
        empty: the empty disk that it is in, or None.
        unit: its number on the SCSI controller, or None.
        undo: the inverses of what was done, that of the device itself last.
        released: set when the guest has released it.
        awaited: whether an `unplug` waits for that.
    """

    id: str
    slot: Slot | None = None
    empty: EmptyDisk | None = None
    unit: int | None = None
    undo: list[Command] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    awaited: bool = False


class Hotplug:
    """The hot-plugged devices of one VM.

    Args:
        name: of the sandbox, for messages.
        slots: the free ones.
        qmp: connected to the VM's QEMU.
        execute: runs a command, with a deadline, and raises `kata.errors`.
        empty: its empty disks.
    """

    def __init__(
        self, name: str, slots: Slots, qmp: QMPClient, execute: Execute, empty: Iterable[EmptyDisk] = ()
    ) -> None:
        self._name = name
        self._qmp = qmp
        self._execute = execute
        self._slots = slots
        self._empty = list(empty)
        self._plugged: dict[str, _Plugged] = {}
        self._number = 0
        self._controller = asyncio.Lock()
        self._listener: EventListener | None = None
        self._listening: asyncio.Task[None] | None = None
        self._releasing: set[asyncio.Task[None]] = set()

    async def plug(self, device: Device | FileSystemDevice) -> str:
        """Hot-plug a device; if that fails, nothing is left of it.

        Returns:
            Where the guest finds it: its PCI path, or "ID:LUN" on the SCSI controller.

        Raises:
            AlreadyExists, ResourceExhausted, FailedPrecondition, DeadlineExceeded, Unavailable: as
                `VirtualMachine.plug`.
        """
        entry = self._enter(device.id)
        try:
            if isinstance(device, BlockDevice) and device.driver == "virtio-scsi":
                return await self._plug_scsi(device, entry)
            if empty := self._empty_for(device):
                return await self._fill(empty, device, entry)
            entry.slot = self._slots.take(express=isinstance(device, VfioDevice))
            await self._carry_out(entry, self._steps(device, entry.slot))
            return entry.slot.path
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._roll_back(entry)))
            raise

    def _enter(self, device_id: str) -> _Plugged:
        if device_id in self._plugged or device_id == commands.SCSI_CONTROLLER:
            raise AlreadyExists(f"device {device_id} of {self._name} already exists")
        self._listen()
        entry = self._plugged[device_id] = _Plugged(device_id)
        return entry

    def _steps(self, device: Device | FileSystemDevice, slot: Slot) -> list[Step]:
        if isinstance(device, BlockDevice):
            self._number += 1
            return [
                *commands.disk(device, self._number),
                commands.disk_in_slot(device, self._number, slot),
            ]
        if isinstance(device, NetworkDevice):
            return commands.network(device, slot)
        if isinstance(device, FileSystemDevice):
            return commands.file_system(device, slot)
        return commands.vfio(device, slot)

    def _empty_for(self, device: Device | FileSystemDevice) -> EmptyDisk | None:
        if not isinstance(device, BlockDevice) or not device.any_size or device.serial:
            return None
        return next((empty for empty in self._empty if empty.read_only == device.read_only), None)

    async def _fill(self, empty: EmptyDisk, device: Device | FileSystemDevice, entry: _Plugged) -> str:
        assert isinstance(device, BlockDevice)
        self._empty.remove(empty)
        entry.empty = empty
        self._number += 1
        steps = [*commands.disk(device, self._number), commands.disk_into_empty(empty.name, self._number)]
        await self._carry_out(entry, steps)
        return empty.slot.path

    async def _plug_scsi(self, device: BlockDevice, entry: _Plugged) -> str:
        # Whoever is cancelled: others may wait for it as well.
        await asyncio.shield(asyncio.ensure_future(self._plug_controller()))
        used = {other.unit for other in self._plugged.values()}
        entry.unit = next(unit for unit in range(len(used) + 1) if unit not in used)
        self._number += 1
        steps = [
            *commands.disk(device, self._number),
            commands.disk_on_scsi(device, self._number, entry.unit),
        ]
        await self._carry_out(entry, steps)
        return commands.scsi_address(entry.unit)

    async def _plug_controller(self) -> None:
        """Plug the SCSI controller with the first disk; it stays.

        Raises:
            FailedPrecondition: QEMU refuses it.
            ResourceExhausted, DeadlineExceeded, Unavailable: as `VirtualMachine.plug`.
        """
        async with self._controller:
            if commands.SCSI_CONTROLLER in self._plugged:
                return
            controller = _Plugged(commands.SCSI_CONTROLLER, self._slots.take())
            assert controller.slot is not None
            try:
                await self._carry_out(controller, [commands.scsi_controller(controller.slot)])
            except FailedPrecondition:
                # Only QEMU's refusal tells that the slot is free.
                self._slots.give(controller.slot)
                raise
            self._plugged[commands.SCSI_CONTROLLER] = controller

    async def _carry_out(self, entry: _Plugged, steps: list[Step]) -> None:
        passing: list[Command] = []
        for step in steps:
            # Noted before it is done: after a cancellation or a timeout it is unknown whether it was done.
            entry.undo.append(step.undo)
            try:
                await self._execute(step.do)
            except FailedPrecondition:
                entry.undo.pop()
                raise
            if step.passing:
                passing.append(step.undo)
            else:
                entry.undo = [command for command in entry.undo if command not in passing]

    async def _roll_back(self, entry: _Plugged) -> None:
        """Undo a plug that failed. Errors are logged: the caller has one already."""
        try:
            if entry.undo and entry.undo[-1].name == "device_del":
                await self.unplug(entry.id, _ROLLBACK_TIMEOUT_S)
            else:
                await self._release(entry)
        except KataError as error:
            log.warning("rolling back the plug of device %s: %s", entry.id, error)

    async def unplug(self, device_id: str, timeout: float) -> None:
        """Have the guest release a device, then release its backend and slot. An empty disk is just emptied.

        Raises:
            NotFound: there is no device with this id.
            DeadlineExceeded: the guest does not release it. Its slot stays taken until it does.
            FailedPrecondition: QEMU refuses, or a part of the device could not be released.
        """
        entry = self._plugged.get(device_id)
        if entry is None or device_id == commands.SCSI_CONTROLLER:
            raise NotFound(f"device {device_id} of {self._name} does not exist")
        if entry.awaited:
            raise FailedPrecondition(f"device {device_id} of {self._name} is already being unplugged")
        entry.awaited = True
        try:
            if not entry.empty:
                async with asyncio.timeout(timeout):
                    await self._ask(entry)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the guest of {self._name} did not release device {device_id} within {timeout:.0f} s"
            ) from None
        except Unavailable:
            log.debug("device %s of %s ended with its VM", device_id, self._name)
        finally:
            entry.awaited = False
        await asyncio.shield(asyncio.ensure_future(self._release(entry)))

    async def grow_disk(self, device_id: str, size: int) -> None:
        """Set the size of a disk in bytes, and that of its image file.

        Raises:
            NotFound: there is no disk with this id.
            FailedPrecondition: QEMU refuses it, for example because the block device is smaller.
        """
        entry = self._plugged.get(device_id)
        nodes = [command.arguments for command in entry.undo if command.name == "blockdev-del"] if entry else []
        if not nodes:
            raise NotFound(f"disk {device_id} of {self._name} does not exist")
        await self._execute(Command("block_resize", {**nodes[0], "size": size}))

    async def _ask(self, entry: _Plugged) -> None:
        """Ask the guest repeatedly until it has released the device.

        Raises:
            FailedPrecondition: QEMU refuses the first request, and not because an unplug is under way.
            Unavailable: QEMU has ended.
            DeadlineExceeded: QEMU does not answer.
        """
        request = entry.undo[-1]
        asked = vanished = False
        while not entry.released.is_set() and not vanished:
            try:
                await self._execute(request)
                asked = True
            except NotFound:
                # It was never there, or its name is gone and the event is still to come.
                vanished = True
            except FailedPrecondition as error:
                # It was asked before, and takes its time.
                if not asked and "process of unplug" not in error.message:
                    raise
            try:
                async with asyncio.timeout(_RETRY_S):
                    await entry.released.wait()
            except TimeoutError:
                continue

    async def _release(self, entry: _Plugged) -> None:
        """Undo all steps but that of the device itself, which the guest has released; the slot is free then.

        Raises:
            FailedPrecondition: QEMU refuses some of them; the others are undone nevertheless.
        """
        problems: list[str] = []
        while entry.undo:
            command = entry.undo.pop()
            if command.name == "device_del":
                continue
            try:
                await self._execute(command)
            except Unavailable:
                break
            except KataError as error:
                problems.append(error.message)
        self._plugged.pop(entry.id, None)
        if entry.slot is not None:
            self._slots.give(entry.slot)
        if entry.empty is not None:
            self._empty.insert(0, entry.empty)
        if problems:
            raise FailedPrecondition(f"device {entry.id} of {self._name}: {'; '.join(problems)}")

    def _listen(self) -> None:
        if self._listening is None:
            from qemu.qmp import EventListener

            self._listener = EventListener(names=(_DELETED,))
            self._qmp.register_listener(self._listener)
            self._listening = asyncio.create_task(self._watch(self._listener), name=f"hot-plug of {self._name}")

    async def _watch(self, listener: EventListener) -> None:
        """Note which devices the guest has released."""
        while True:
            event = await listener.get()
            data = event.get("data")
            entry = self._plugged.get(str(data.get("device"))) if isinstance(data, dict) else None
            if entry is None:
                continue
            entry.released.set()
            if not entry.awaited:
                log.info("the guest of %s has released device %s", self._name, entry.id)
                task = asyncio.create_task(self._release_late(entry))
                self._releasing.add(task)
                task.add_done_callback(self._releasing.discard)

    async def _release_late(self, entry: _Plugged) -> None:
        try:
            await self._release(entry)
        except KataError as error:
            log.warning("%s", error)

    def close(self) -> None:
        """Stop listening, as the VM has ended. Idempotent."""
        for task in (*self._releasing, *([self._listening] if self._listening else [])):
            task.cancel()
        self._listening = None
