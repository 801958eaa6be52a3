"""The QMP commands for each kind of device, as functions of its description."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kata.errors import InvalidArgument
from kata.runtime.hypervisor.devices import BlockDevice, NetworkDevice, VfioDevice
from kata.runtime.hypervisor.qemu import device_commands as commands
from kata.runtime.hypervisor.qemu.device_commands import Command, FileSystemDevice
from kata.runtime.hypervisor.qemu.slots import Slot

SLOT = Slot(0x9, 0x3)
MAC = "02:00:00:00:00:01"


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def test_a_disk_is_opened_by_nobody_but_the_caller(image: int) -> None:
    device = BlockDevice(id="vol", fd=image, read_only=True, cache_direct=True, aio="native", serial="vol-1")
    add_fd, blockdev = commands.disk(device, 7)
    assert add_fd.do == Command("add-fd", {"fdset-id": 7, "opaque": "vol"}, image)
    assert add_fd.undo == Command("remove-fd", {"fdset-id": 7})
    assert blockdev.do.arguments == {
        "driver": "raw",
        "node-name": "disk7",
        "read-only": True,
        "discard": "unmap",
        "cache": {"direct": True, "no-flush": False},
        "file": {"driver": "file", "filename": "/dev/fdset/7", "aio": "native"},
    }
    assert blockdev.undo == Command("blockdev-del", {"node-name": "disk7"})
    step = commands.disk_in_slot(device, 7, SLOT)
    assert step.do.arguments == {
        "driver": "virtio-blk-pci",
        "id": "vol",
        "bus": "bridge0",
        "addr": "0x3",
        "disable-legacy": "on",
        "drive": "disk7",
        "werror": "report",
        "serial": "vol-1",
    }
    assert step.undo == Command("device_del", {"id": "vol"})


def test_a_block_device_has_another_driver_than_a_file() -> None:
    loops = [path for path in Path("/dev").glob("loop[0-9]*") if path.is_block_device()]
    if not loops or os.geteuid():
        pytest.skip("needs root and a block device")
    fd = os.open(loops[0], os.O_RDONLY)
    try:
        [_, blockdev] = commands.disk(BlockDevice(id="dev", fd=fd), 1)
    finally:
        os.close(fd)
    assert isinstance(blockdev.do.arguments["file"], dict)
    assert blockdev.do.arguments["file"]["driver"] == "host_device"


@pytest.mark.parametrize(("unit", "address"), [(0, "0:0"), (255, "0:255"), (256, "1:0"), (700, "2:188")])
def test_scsi_disks_are_numbered_as_katas_are(image: int, unit: int, address: str) -> None:
    assert commands.scsi_address(unit) == address
    step = commands.disk_on_scsi(BlockDevice(id="vol", fd=image, driver="virtio-scsi"), 1, unit)
    arguments = step.do.arguments
    assert f"{arguments['scsi-id']}:{arguments['lun']}" == address
    assert (arguments["driver"], arguments["bus"], arguments["channel"]) == ("scsi-hd", "scsi0.0", 0)


def test_an_interface_with_one_queue() -> None:
    getfd, backend, device = commands.network(NetworkDevice(id="eth0", taps=(5,), mac=MAC), SLOT)
    assert getfd.do == Command("getfd", {"fdname": "eth0-tap0"}, 5)
    assert getfd.passing
    assert backend.do.arguments == {"type": "tap", "id": "eth0-tap", "vhost": False, "fd": "eth0-tap0"}
    assert backend.undo == Command("netdev_del", {"id": "eth0-tap"})
    assert device.do.arguments == {
        "driver": "virtio-net-pci",
        "id": "eth0",
        "bus": "bridge0",
        "addr": "0x3",
        "disable-legacy": "on",
        "netdev": "eth0-tap",
        "mac": MAC,
        "romfile": "",
    }


def test_an_interface_with_queues_and_vhost() -> None:
    steps = commands.network(NetworkDevice(id="eth0", taps=(5, 6), vhosts=(7, 8), mac=MAC), SLOT)
    assert [step.do.fd for step in steps] == [5, 6, 7, 8, None, None]
    backend, device = steps[-2:]
    assert (backend.do.arguments["fds"], backend.do.arguments["vhostfds"]) == (
        "eth0-tap0:eth0-tap1",
        "eth0-vhost0:eth0-vhost1",
    )
    assert backend.do.arguments["vhost"] is True
    assert {"mq": True, "vectors": 6}.items() <= device.do.arguments.items()


def test_a_file_system_on_a_connection_that_is_there() -> None:
    [step] = commands.file_system(FileSystemDevice(id="share0", chardev="share", tag="kataShared"), SLOT)
    assert step.do.arguments == {
        "driver": "vhost-user-fs-pci",
        "id": "share0",
        "bus": "bridge0",
        "addr": "0x3",
        "chardev": "share",
        "tag": "kataShared",
        "queue-size": 1024,
    }


def test_a_device_of_the_hosts() -> None:
    [step] = commands.vfio(VfioDevice(id="gpu", host="0000:3b:00.0"), Slot(0x4, 0))
    assert step.do.arguments == {
        "driver": "vfio-pci",
        "id": "gpu",
        "host": "0000:3b:00.0",
        "bus": "rp0",
        "addr": "0x0",
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "a,b"},
        {"id": ""},
        {"serial": "x" * 21},
        {"serial": "a b"},
        {"driver": "ide"},
        {"aio": "native"},
        {"aio": "posix"},
    ],
)
def test_impossible_disks(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        BlockDevice(**{"id": "vol", "fd": 3, **fields})


@pytest.mark.parametrize(
    "fields",
    [{"taps": ()}, {"vhosts": (1, 2)}, {"mac": "03:00:00:00:00:01"}, {"mac": "x"}, {"taps": (1,) * 257}],
)
def test_impossible_interfaces(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        NetworkDevice(**{"id": "eth0", "taps": (3,), "mac": MAC, **fields})


@pytest.mark.parametrize("host", ["3b:00.0", "0000:3b:00.8", "0000:3b:20.0", "/dev/vfio/3"])
def test_impossible_pci_addresses(host: str) -> None:
    with pytest.raises(InvalidArgument):
        VfioDevice(id="gpu", host=host)
