"""Devices in and out of a running VM, seen from both sides: QEMU's descriptors and the guest's kernel."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from kata.errors import AlreadyExists, DeadlineExceeded, FailedPrecondition, KataError, NotFound, ResourceExhausted
from kata.linux import mount
from kata.oci import convert
from kata.oci.default import default_spec
from kata.protocols import agent_pb2
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.config.loader import load
from kata.runtime.hypervisor.devices import BlockDevice
from kata.runtime.hypervisor.qemu.vm import QemuVm
from kata.runtime.launch.bring_up import bring_up
from kata.runtime.launch.host import look_at_host
from kata.runtime.launch.timings import Timings
from kata.runtime.launch.vm_plan import plan_vm
from kata.runtime.ledger.journal import STATE_ROOT, claim
from kata.runtime.ledger.kinds import PROCESS
from kata.runtime.sandbox.requests import create_sandbox_request
from kata.runtime.storage.container_files import GUEST_SHARED
from tests.support import leaks
from tests.support.descriptors import open_files
from tests.support.images import busybox_rootfs
from tests.support.waiting import eventually_async

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.asyncio(loop_scope="module"),
]

MIB = 1 << 20
SLOTS = 62


class Running:
    """A VM with a container in it that says what the kernel sees.

    Attributes:
        vm, agent: the VM, and its agent.
    """

    def __init__(self, vm: QemuVm, agent: AgentClient) -> None:
        self.vm = vm
        self.agent = agent

    async def shell(self, script: str) -> str:
        """What a script prints that the container's shell runs."""
        await self.agent.write_stdin("box", "", f"( {script} ) 2>&1; echo =====\n".encode())
        said = ""
        while not said.endswith("=====\n"):
            said += (await self.agent.read_stdout("box", "")).decode()
        return said.removesuffix("=====\n")

    async def disks(self) -> dict[str, int]:
        """Name and size in bytes of the guest's disks but for its own."""
        lines = (await self.shell("cat /proc/partitions")).splitlines()[2:]
        found = {line.split()[3]: int(line.split()[2]) * 1024 for line in lines}
        return {name: size for name, size in found.items() if name != "vda" and not name.startswith("loop")}

    async def until(self, count: int) -> dict[str, int]:
        """The disks, as soon as there are so many."""
        return await eventually_async(self.disks, f"{count} disks", lambda found: len(found) == count)

    def held(self) -> set[str]:
        """Files below the tests' directories that QEMU has open."""
        names = {Path(target).name for target in open_files(self.vm.pid).values()}
        return {name for name in names if name.endswith(".img")}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    config = load().config
    name = f"{leaks.TEST_PREFIX}hotplug"
    ledger = claim(f"{STATE_ROOT}/{name}")
    ledger.hold(PROCESS, ledger.directory)
    directory = Path(ledger.directory)
    box = directory / "shared/box"
    box.mkdir(parents=True)
    (directory / "root").mkdir()
    rootfs = tmp_path_factory.mktemp("rootfs")
    busybox_rootfs(rootfs)
    mount.bind(str(rootfs), str(box), 0)
    try:
        config = replace(config, hypervisor=replace(config.hypervisor, default_memory=256))
        plan = plan_vm(name, directory, {}, config, look_at_host(config.hypervisor, "tcg"))
        vm, agent = await bring_up(plan, config, ledger, Timings(directory, time.monotonic()), lambda _: None)
        assert isinstance(vm, QemuVm)
        try:
            await agent.create_sandbox(create_sandbox_request(name, {}, config))
            spec = default_spec(["/bin/sh"], rootfs=f"{GUEST_SHARED}/box", hostname=name, mounts=[])
            spec["mounts"] = [entry for entry in spec["mounts"] if entry["destination"] != "/dev/shm"]
            request = agent_pb2.CreateContainerRequest(container_id="box", OCI=convert.to_proto(spec))
            await agent.create_container(request, timeout=60)
            await agent.start_container("box")
            yield Running(vm, agent)
        finally:
            await vm.stop()
            await agent.close()
    finally:
        mount.umount(str(box))
        assert ledger.release() == []


@contextmanager
def image(path: Path, size: int = 8 * MIB) -> Iterator[int]:
    """An image file, open for reading and writing."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    os.ftruncate(fd, size)
    try:
        yield fd
    finally:
        os.close(fd)


async def test_a_disk_comes_and_goes_and_comes_again(running: Running, tmp_path: Path) -> None:
    for size in (8 * MIB, 16 * MIB):
        with image(tmp_path / "a.img", size) as fd:
            await running.vm.plug(BlockDevice(id="a", fd=fd))
        assert list((await running.until(1)).values()) == [size]
        assert running.held() == {"a.img"}
        await running.vm.unplug("a")
        await running.until(0)
        assert running.held() == set()


async def test_disks_on_the_scsi_controller_are_numbered(running: Running, tmp_path: Path) -> None:
    async def plug(name: str) -> str:
        with image(tmp_path / f"{name}.img") as fd:
            return await running.vm.plug(BlockDevice(id=name, fd=fd, driver="virtio-scsi"))

    assert await asyncio.gather(*map(plug, "abc")) == ["0:0", "0:1", "0:2"]
    await running.vm.unplug("b")
    assert running.held() == {"a.img", "c.img"}
    assert await plug("d") == "0:1"
    for name in "acd":
        await running.vm.unplug(name)
    assert running.held() == set()


async def test_the_path_that_plug_returns_is_where_the_guest_has_it(running: Running, tmp_path: Path) -> None:
    with image(tmp_path / "a.img") as fd:
        path = await running.vm.plug(BlockDevice(id="a", fd=fd, serial="serial-a"))
    [disk] = await running.until(1)
    bridge, slot = path.split("/")
    link = (await running.shell(f"readlink -f /sys/block/{disk}; cat /sys/block/{disk}/serial")).splitlines()
    assert f"/0000:00:{bridge}.0/" in link[0]
    assert f":{slot}.0/virtio" in link[0]
    assert link[1] == "serial-a"
    await running.vm.unplug("a")


async def test_a_read_only_disk_is_read_only(running: Running, tmp_path: Path) -> None:
    with image(tmp_path / "a.img"):
        fd = os.open(tmp_path / "a.img", os.O_RDONLY)
        try:
            await running.vm.plug(BlockDevice(id="a", fd=fd, read_only=True))
        finally:
            os.close(fd)
    [disk] = await running.until(1)
    assert (await running.shell(f"cat /sys/block/{disk}/ro")).strip() == "1"
    await running.vm.unplug("a")


async def test_what_cannot_be_plugged_leaves_nothing(running: Running, tmp_path: Path) -> None:
    with image(tmp_path / "a.img"):
        fd = os.open(tmp_path / "a.img", os.O_RDONLY)
        try:
            with pytest.raises(FailedPrecondition, match="blockdev-add"):
                await running.vm.plug(BlockDevice(id="a", fd=fd))  # to be written, but opened for reading
        finally:
            os.close(fd)
    assert running.held() == set()
    with pytest.raises(NotFound):
        await running.vm.unplug("a")


async def test_two_writers_of_one_image_are_refused(running: Running, tmp_path: Path) -> None:
    with image(tmp_path / "a.img") as one, image(tmp_path / "a.img") as other:
        await running.vm.plug(BlockDevice(id="a", fd=one))
        with pytest.raises(FailedPrecondition, match="lock"):
            await running.vm.plug(BlockDevice(id="b", fd=other))
        with pytest.raises(AlreadyExists):
            await running.vm.plug(BlockDevice(id="a", fd=other))
    assert len(await running.until(1)) == 1
    await running.vm.unplug("a")


async def test_as_many_disks_as_there_are_slots_and_not_one_more(running: Running, tmp_path: Path) -> None:
    plugged: list[str] = []

    async def plug_for_ever() -> None:
        while len(plugged) <= SLOTS:
            with image(tmp_path / f"{len(plugged)}.img", MIB) as fd:
                await running.vm.plug(BlockDevice(id=f"many{len(plugged)}", fd=fd))
            plugged.append(f"many{len(plugged)}")

    with pytest.raises(ResourceExhausted, match="all 62 slots for hot-plug are in use"):
        await plug_for_ever()
    # One may be the SCSI controller's, if that test came before.
    assert len(plugged) in (SLOTS - 1, SLOTS)
    assert len(await running.until(len(plugged))) == len(plugged)
    await asyncio.gather(*(running.vm.unplug(name, 60) for name in plugged))
    assert running.held() == set()
    await running.until(0)


async def test_a_guest_that_keeps_a_device_is_not_waited_for(running: Running, tmp_path: Path) -> None:
    with image(tmp_path / "a.img") as fd:
        await running.vm.plug(BlockDevice(id="a", fd=fd))
    await running.until(1)
    await running.vm.pause()
    with pytest.raises(DeadlineExceeded, match="did not release device a"):
        await running.vm.unplug("a", timeout=1.5)
    assert running.held() == {"a.img"}
    with image(tmp_path / "b.img") as fd:
        await running.vm.plug(BlockDevice(id="b", fd=fd))
    await running.vm.resume()
    # It has been asked, and lets go now, with nobody waiting.
    await eventually_async(running.held, "it lets go", lambda held: "a.img" not in held)
    await running.until(1)
    with pytest.raises(NotFound):
        await running.vm.unplug("a")
    await running.vm.unplug("b")


async def test_a_plug_that_is_given_up_leaves_nothing(running: Running, tmp_path: Path) -> None:
    for pause in (0.0, 0.0, 0.001, 0.002, 0.004, 0.008):
        with image(tmp_path / "a.img") as fd:
            task = asyncio.ensure_future(running.vm.plug(BlockDevice(id="a", fd=fd)))
            await asyncio.sleep(pause)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                pass
            else:
                await running.vm.unplug("a")
        assert running.held() == set()
        await running.until(0)


async def test_a_dead_vm_has_given_back_everything(running: Running, tmp_path: Path) -> None:
    # The last test of the module: it takes the VM away.
    with image(tmp_path / "a.img") as fd:
        await running.vm.plug(BlockDevice(id="a", fd=fd))
    running.vm.kill()
    await running.vm.unplug("a")
    await running.vm.wait()
    await running.vm.unplug("a")
    with image(tmp_path / "b.img") as fd, pytest.raises(KataError):
        await running.vm.plug(BlockDevice(id="b", fd=fd))
