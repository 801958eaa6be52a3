"""The disks of a sandbox, plugged into a VM that only notes what it is given: the real one is in tests/vm."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from kata.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound
from kata.runtime.config.settings import HypervisorConfig
from kata.runtime.devices.block import Disks
from kata.runtime.hypervisor.base import VirtualMachine
from kata.runtime.hypervisor.devices import BlockDevice
from kata.runtime.storage.disk import Disk
from tests.support.descriptors import open_files

_OPEN = os.open


class Vm:
    """Notes what is plugged in."""

    def __init__(self) -> None:
        self.plugged: dict[str, BlockDevice] = {}
        self.grown: dict[str, int] = {}
        self.refuses = ""
        self.keeps = False

    async def plug(self, device: BlockDevice) -> str:
        await asyncio.sleep(0)
        if os.readlink(f"/proc/self/fd/{device.fd}").endswith(self.refuses or "\0"):
            raise FailedPrecondition("no")
        self.plugged[device.id] = device
        return f"09/{len(self.plugged):02x}"

    async def grow_disk(self, device_id: str, size: int) -> None:
        self.grown[device_id] = size

    async def unplug(self, device_id: str, timeout: float = 1) -> None:
        if self.keeps:
            raise DeadlineExceeded("no")
        del self.plugged[device_id]


@pytest.fixture
def vm() -> Vm:
    return Vm()


@pytest.fixture
def disks(vm: Vm) -> Disks:
    return Disks(cast(VirtualMachine, vm), HypervisorConfig(), "tcg")


def image(path: Path, name: str = "a") -> Disk:
    (path / name).write_bytes(bytes(512))
    return Disk(str(path / name), read_only=False, container_path="/dev/data")


async def test_one_disk_for_many_users(vm: Vm, disks: Disks, tmp_path: Path) -> None:
    disk = image(tmp_path)
    (tmp_path / "same").symlink_to(tmp_path / "a")
    first, second = await asyncio.gather(
        disks.attach("one", [disk]), disks.attach("two", [replace(disk, source=str(tmp_path / "same"))])
    )
    assert [(one.kind, one.address) for one in (*first, *second)] == [("blk", "09/01")] * 2
    assert len(vm.plugged) == 1
    await disks.detach("one")
    await disks.detach("one")
    assert len(vm.plugged) == 1
    await disks.detach("two")
    assert vm.plugged == {}


async def test_a_disk_that_hangs_while_it_is_opened_holds_up_nobody(
    disks: Disks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening: list[threading.Thread] = []
    monkeypatch.setattr(os, "open", _noting(opening))
    await disks.attach("one", [image(tmp_path)])
    await disks.grow(str(tmp_path / "a"), 1024)
    assert len(opening) == 2
    assert threading.main_thread() not in opening, "that of the event loop"


async def test_who_is_cancelled_while_a_disk_is_opened_leaves_it_closed(
    vm: Vm, disks: Disks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, released = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> int:
        begun.set()
        assert released.wait(60)
        return _OPEN(*arguments)

    monkeypatch.setattr(os, "open", slow)
    attaching = asyncio.create_task(disks.attach("one", [image(tmp_path)]))
    assert await asyncio.to_thread(begun.wait, 60)
    attaching.cancel()
    released.set()
    with pytest.raises(asyncio.CancelledError):
        await attaching
    assert vm.plugged == {}
    assert not [link for link in open_files().values() if link.endswith("/a")]


def _noting(threads: list[threading.Thread]) -> Any:
    def open_noted(*arguments: Any) -> int:
        threads.append(threading.current_thread())
        return _OPEN(*arguments)

    return open_noted


async def test_all_or_none(vm: Vm, disks: Disks, tmp_path: Path) -> None:
    vm.refuses = "/b"
    with pytest.raises(FailedPrecondition):
        await disks.attach("one", [image(tmp_path), image(tmp_path, "b")])
    assert vm.plugged == {}
    await disks.attach("two", [image(tmp_path)])
    with pytest.raises(FailedPrecondition):
        await disks.attach("one", [image(tmp_path), image(tmp_path, "b")])
    assert len(vm.plugged) == 1, "the other container's disk stays"


async def test_who_wants_to_write_needs_a_disk_that_can_be(vm: Vm, disks: Disks, tmp_path: Path) -> None:
    disk = image(tmp_path)
    await disks.attach("one", [replace(disk, read_only=True)])
    with pytest.raises(FailedPrecondition, match="read-only"):
        await disks.attach("two", [disk])
    await disks.attach("three", [replace(disk, read_only=True)])
    await disks.detach("one")
    assert len(vm.plugged) == 1


async def test_a_guest_that_keeps_a_disk_stops_nobody(vm: Vm, disks: Disks, tmp_path: Path) -> None:
    await disks.attach("one", [image(tmp_path)])
    vm.keeps = True
    await disks.detach("one")
    await disks.attach("one", [image(tmp_path, "b")])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"driver": "virtio-blk", "cache_direct": False, "cache_no_flush": False, "aio": "threads"}),
        ({"block_device_aio": "native"}, {"cache_direct": True, "aio": "native"}),
        ({"block_device_cache_direct": True}, {"cache_direct": False}),
        (
            {
                "block_device_cache_set": True,
                "block_device_cache_direct": True,
                "block_device_cache_noflush": True,
            },
            {"cache_direct": True, "cache_no_flush": True},
        ),
        ({"block_device_driver": "virtio-scsi"}, {"driver": "virtio-scsi"}),
    ],
)
async def test_settings(vm: Vm, tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    disks = Disks(cast(VirtualMachine, vm), replace(HypervisorConfig(), **changes), "tcg")
    [attached] = await disks.attach("one", [image(tmp_path)])
    [device] = vm.plugged.values()
    assert {name: getattr(device, name) for name in expected} == expected
    assert attached.kind == ("scsi" if device.driver == "virtio-scsi" else "blk")


async def test_no_descriptor_stays_open(disks: Disks, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    await disks.attach("one", [image(tmp_path)])
    assert len(os.listdir("/proc/self/fd")) == before


async def test_what_is_no_disk(disks: Disks, tmp_path: Path) -> None:
    def disk(name: str) -> list[Disk]:
        return [Disk(str(tmp_path / name), read_only=True)]

    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    with pytest.raises(NotFound, match="does not exist"):
        await disks.attach("one", disk("missing"))
    with pytest.raises(InvalidArgument, match="neither a block device nor a regular file"):
        await disks.attach("one", disk("fifo"))
    with pytest.raises(InvalidArgument, match="neither"):
        await disks.attach("one", disk("."))
    with pytest.raises(InvalidArgument, match="empty"):
        await disks.attach("one", disk("empty"))


async def test_a_disk_grows_and_does_not_shrink(vm: Vm, disks: Disks, tmp_path: Path) -> None:
    disk = image(tmp_path)
    with pytest.raises(NotFound, match="is not in the VM"):
        await disks.grow(disk.source, 1024)
    await disks.attach("one", [disk])
    await disks.grow(disk.source, 1024)
    assert list(vm.grown.values()) == [1024]
    with pytest.raises(InvalidArgument, match="has 512 bytes and cannot shrink to 511"):
        await disks.grow(disk.source, 511)
