"""Disks of the host in containers: as devices, as volumes, as root file systems; given back, however it ends."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kata.protocols.containerd import task_v2_pb2, types_pb2
from kata.ttrpc.typed import Stub
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.descriptors import open_files
from tests.support.images import BUSYBOX, busybox_rootfs
from tests.support.leaks import TEST_PREFIX
from tests.support.rawshim import RawShim
from tests.support.repeats import repeated
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.containerd,
    pytest.mark.usefixtures("nothing_left_by_this"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="needs loop devices"),
]

SIZE = 32 << 20
#: Disks that a VM can have.
MAXIMUM = 62
_TIMEOUT_S = 60.0
#: Prints "ef53" of a disk with an ext2, ext3 or ext4 file system.
MAGIC = "dd if={} bs=2 skip=540 count=1 2>/dev/null | od -An -tx2"


def host(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S).stdout.strip()


class Loop:
    """A loop device on an image file."""

    def __init__(self, image: Path) -> None:
        self.image = image
        self.device = host("losetup", "--find", "--show", str(image))

    def release(self) -> None:
        host("losetup", "--detach", self.device)

    @contextmanager
    def mounted(self, point: Path) -> Iterator[Path]:
        """Its file system, on the host."""
        point.mkdir(exist_ok=True)
        host("mount", self.device, str(point))
        try:
            yield point
        finally:
            host("umount", str(point))

    @property
    def is_free(self) -> bool:
        """Whether nobody else has it open: an exclusive open succeeds, as the host's own mount would."""
        try:
            os.close(os.open(self.device, os.O_RDWR | os.O_EXCL))
        except OSError:
            return False
        return True


@contextmanager
def made(image: Path) -> Iterator[Loop]:
    """A disk, on an empty file at `image`, that has been given back in the end."""
    image.touch()
    os.truncate(image, SIZE)
    loop = Loop(image)
    try:
        yield loop
        # What the host has unmounted may still be mounted in the namespace of a shim that is exiting.
        eventually(lambda: loop.is_free, "the disk is free again")
    finally:
        loop.release()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    with made(tmp_path / "disk.img") as loop:
        yield loop


@pytest.fixture
def formatted(loop: Loop) -> Loop:
    host("mkfs.ext4", "-q", loop.device)
    return loop


def run(containerd: PrivateContainerd, *flags: str, script: str) -> subprocess.CompletedProcess[str]:
    arguments = ["run", "--rm", "--runtime", RUNTIME, *flags, BUSYBOX, unique_id(TEST_PREFIX), "sh", "-c", script]
    return containerd.ctr(*arguments, check=False)


def test_a_raw_disk_is_formatted_inside_and_read_outside(
    containerd: PrivateContainerd, loop: Loop, tmp_path: Path
) -> None:
    done = run(
        containerd,
        "--device",
        loop.device,
        script=f"mke2fs -F {loop.device} >/dev/null && {MAGIC.format(loop.device)}",
    )
    assert (done.returncode, done.stdout.strip()) == (0, "ef53"), done.stderr
    with loop.mounted(tmp_path / "point") as point:
        assert (point / "lost+found").is_dir()


def test_a_disk_has_the_guests_number_and_no_other_disk_is_open(containerd: PrivateContainerd, loop: Loop) -> None:
    done = run(
        containerd,
        "--device",
        loop.device,
        script=f"stat -c '%t %T' {loop.device}; blockdev --getsize64 {loop.device}; "
        # The guest's own disk: the container may not even make a node of it that it can open.
        "mknod /tmp/other b 254 0 2>/dev/null; dd if=/tmp/other of=/dev/null count=1 2>/dev/null || echo closed",
    )
    number, size, other = done.stdout.splitlines()
    assert (size, other) == (str(SIZE), "closed"), done.stderr
    assert number == "fe 10", "virtio disks are 254, the second one's first minor is 16"


def test_a_volume_on_a_disk(containerd: PrivateContainerd, formatted: Loop, tmp_path: Path) -> None:
    mount = f"type=ext4,src={formatted.device},dst=/data,options=noatime"
    done = run(
        containerd,
        "--mount",
        mount,
        script="echo hello > /data/file; ln /data/file /data/link; grep /data /proc/mounts",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[2] == "ext4"
    assert "noatime" in done.stdout
    with formatted.mounted(tmp_path / "point") as point:
        assert (point / "link").read_text() == "hello\n"
    done = run(containerd, "--mount", f"{mount}:ro", script="cat /data/file; echo no > /data/file")
    assert (done.returncode, done.stdout) == (1, "hello\n")
    assert "Read-only file system" in done.stderr


def test_a_disk_bound_to_a_path(containerd: PrivateContainerd, formatted: Loop) -> None:
    mount = f"type=bind,src={formatted.device},dst=/dev/xvda,options=rbind:ro"
    done = run(containerd, "--mount", mount, script=MAGIC.format("/dev/xvda"))
    assert (done.returncode, done.stdout.strip()) == (0, "ef53"), done.stderr


def test_disks_on_a_scsi_controller(containerd: PrivateContainerd, formatted: Loop, tmp_path: Path) -> None:
    """The other driver: one disk as a device, one as a volume, read-only, past the host's page cache."""
    configuration = tmp_path / "scsi.toml"
    configuration.write_text(
        '[hypervisor.qemu]\ndefault_memory = 512\nblock_device_driver = "virtio-scsi"\n'
        'block_device_aio = "native"\nblock_device_cache_set = true\nblock_device_cache_direct = true\n'
    )
    with made(tmp_path / "raw.img") as raw:
        done = run(
            containerd,
            *("--runtime-config-path", str(configuration), "--device", raw.device),
            *("--mount", f"type=ext4,src={formatted.device},dst=/data,options=ro"),
            script=f"stat -c %t {raw.device}; grep -o '^/dev/[^ ]* /data ext4 ro' /proc/mounts; "
            f"mke2fs -F {raw.device} >/dev/null; {MAGIC.format(raw.device)}",
        )
        assert done.returncode == 0, done.stderr
        number, mounted, magic = done.stdout.splitlines()
        assert (number, magic.strip()) == ("8", "ef53"), "SCSI disks have the number 8"
        assert mounted.startswith("/dev/sd")
        with raw.mounted(tmp_path / "point") as point:
            assert (point / "lost+found").is_dir()


def test_a_disk_that_the_host_has_mounted_is_refused(
    containerd: PrivateContainerd, formatted: Loop, tmp_path: Path
) -> None:
    with formatted.mounted(tmp_path / "point"):
        done = run(containerd, "--device", formatted.device, script="true")
    assert done.returncode == 1
    assert f"disk {formatted.device} is in use on this host" in done.stderr


def test_what_is_not_formatted_is_refused_and_stays_so(containerd: PrivateContainerd, loop: Loop) -> None:
    done = run(containerd, "--mount", f"type=ext4,src={loop.device},dst=/data", script="true")
    assert done.returncode == 1
    assert "cannot mount storage blk" in done.stderr
    assert loop.image.read_bytes().count(0) == SIZE


@pytest.fixture
def rootfs(formatted: Loop, tmp_path: Path) -> Loop:
    with formatted.mounted(tmp_path / "point") as point:
        busybox_rootfs(point)
    return formatted


async def life(raw: RawShim, task: Stub, container_id: str, *rootfs: types_pb2.Mount) -> int:
    """Create, start, wait, delete; the exit status."""
    await task.Create(raw.create_request(container_id, rootfs=rootfs), timeout=60)
    waiting = asyncio.create_task(task.Wait(task_v2_pb2.WaitRequest(id=container_id), timeout=60))
    await task.Start(task_v2_pb2.StartRequest(id=container_id), timeout=60)
    status = int((await waiting).exit_status)
    await task.Delete(task_v2_pb2.DeleteRequest(id=container_id), timeout=60)
    return status


@pytest.mark.parametrize("as_file", [False, True], ids=["device", "image file"])
async def test_a_root_on_a_disk(raw: RawShim, rootfs: Loop, as_file: bool, tmp_path: Path) -> None:
    container_id = raw.bundle("sh", "-c", "echo written >/made && grep -q '^/dev/vd. / ext4' /proc/mounts")
    source = str(rootfs.image) if as_file else rootfs.device
    options = ["rw", "loop"] if as_file else ["rw"]
    if as_file:
        rootfs.release()
    try:
        task = await raw.task(container_id)
        mount = types_pb2.Mount(type="ext4", source=source, options=options)
        assert await life(raw, task, container_id, mount) == 0
        await task.Shutdown(task_v2_pb2.ShutdownRequest(id=container_id))
    finally:
        if as_file:
            rootfs.device = host("losetup", "--find", "--show", str(rootfs.image))
    with rootfs.mounted(tmp_path / "point") as point:
        assert (point / "made").read_text() == "written\n"


async def test_a_pods_containers_share_a_disk_that_is_plugged_once(raw: RawShim, formatted: Loop) -> None:
    def member(*command: str, options: str = "rw") -> str:
        kind = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": sandbox_id}
        mount = {"destination": "/data", "type": "ext4", "source": formatted.device, "options": [options]}
        return raw.bundle(*command, annotations=kind, mounts=[mount])

    sandbox_id = raw.bundle(annotations={"io.kubernetes.cri.container-type": "sandbox"})
    first = member("sh", "-c", "echo shared >/data/file; sleep 600")
    task = await raw.task(sandbox_id)
    await task.Create(raw.create_request(sandbox_id), timeout=60)
    await task.Start(task_v2_pb2.StartRequest(id=sandbox_id), timeout=60)

    def opened() -> int:
        """How often QEMU has the disk open."""
        return list(open_files(raw.vmm(sandbox_id)).values()).count(formatted.device)

    raw.start(first)
    await task.Create(raw.create_request(first), timeout=60)
    await task.Start(task_v2_pb2.StartRequest(id=first), timeout=60)
    once = opened()
    assert once > 0
    second = member("sh", "-c", "until [ -s /data/file ]; do sleep 0.1; done; [ $(cat /data/file) = shared ]")
    raw.start(second)
    assert await life(raw, task, second) == 0
    assert opened() == once, "plugged once, and still there for the other"
    await task.Kill(task_v2_pb2.KillRequest(id=first, signal=9))
    await task.Wait(task_v2_pb2.WaitRequest(id=first), timeout=30)
    await task.Delete(task_v2_pb2.DeleteRequest(id=first), timeout=30)
    assert opened() == 0
    assert formatted.is_free


async def test_a_killed_shim_gives_the_disk_back(raw: RawShim, formatted: Loop) -> None:
    for moment in (0.0, 0.2, 0.6, 1.2, None):
        mount = {"destination": "/data", "type": "ext4", "source": formatted.device}
        container_id = raw.bundle("sleep", "600", mounts=[mount])
        task = await raw.task(container_id)
        creating = asyncio.create_task(task.Create(raw.create_request(container_id), timeout=60))
        await asyncio.wait({creating}, timeout=moment)
        raw.kill(container_id)
        await asyncio.gather(creating, return_exceptions=True)
        raw.binary(container_id, "delete")
        assert formatted.is_free


@pytest.mark.parametrize("victim", ["shim", "vm"])
@repeated(2, round_s=30)
async def test_killed_while_a_disk_comes_and_goes(raw: RawShim, formatted: Loop, victim: str, rounds: int) -> None:
    """kill -9 at any moment of plugging and unplugging in a pod: the disk is the host's again, and whole."""
    for _ in range(rounds):
        sandbox_id = raw.bundle(annotations={"io.kubernetes.cri.container-type": "sandbox"})
        task = await raw.task(sandbox_id)
        await task.Create(raw.create_request(sandbox_id), timeout=60)
        await task.Start(task_v2_pb2.StartRequest(id=sandbox_id), timeout=60)
        busy = asyncio.create_task(come_and_go(raw, task, sandbox_id, formatted))
        moment = random.uniform(0, 1.5)
        await asyncio.wait({busy}, timeout=moment)
        pid = raw.pid(sandbox_id) if victim == "shim" else raw.vmm(sandbox_id)
        os.kill(pid, signal.SIGKILL)
        await asyncio.gather(busy, return_exceptions=True)
        raw.kill(sandbox_id)
        raw.binary(sandbox_id, "delete")
        assert formatted.is_free
        host("e2fsck", "-p", formatted.device)


async def come_and_go(raw: RawShim, task: Stub, sandbox_id: str, disk: Loop) -> None:
    """One container after the other in a pod, each with the disk."""
    kind = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": sandbox_id}
    mount = {"destination": "/data", "type": "ext4", "source": disk.device}
    while True:
        container_id = raw.bundle("sh", "-c", "date >/data/now", annotations=kind, mounts=[mount])
        await asyncio.to_thread(raw.start, container_id)
        await life(raw, task, container_id)


@pytest.mark.timeout(180)
def test_sixty_disks_and_one_too_many(containerd: PrivateContainerd, tmp_path: Path) -> None:
    """As many as the VM has places for; more is told, and none of them stays."""
    images = [tmp_path / f"disk-{number}.img" for number in range(MAXIMUM + 1)]
    with images[0].open("wb") as file:
        file.truncate(1 << 20)
    host("mkfs.ext4", "-q", str(images[0]))
    for image in images[1:]:
        shutil.copyfile(images[0], image)
    flags = [f"--mount=type=ext4,src={image},dst=/disks/{number},options=loop" for number, image in enumerate(images)]
    done = run(containerd, *flags[:MAXIMUM], script="grep -c ' /disks/.* ext4 ' /proc/mounts")
    assert (done.returncode, done.stdout.strip()) == (0, str(MAXIMUM)), done.stderr
    done = run(containerd, *flags, script="true")
    assert done.returncode != 0
    assert f"all {MAXIMUM} slots for hot-plug are in use" in done.stderr


def test_a_disk_by_its_name(containerd: PrivateContainerd, loop: Loop, tmp_path: Path) -> None:
    """The host's Container Device Interface: an annotation names the device, a file of the host says what it is."""
    directory = tmp_path / "cdi"
    directory.mkdir()
    (directory / "disk.yaml").write_text(
        "cdiVersion: 0.6.0\nkind: kata.test/disk\ndevices:\n- name: fast\n  containerEdits:\n"
        "    env: [DISK=/dev/fast]\n"
        f"    deviceNodes:\n    - {{path: /dev/fast, hostPath: {loop.device}}}\n"
    )
    configuration = tmp_path / "configuration.toml"
    configuration.write_text(f'[hypervisor.qemu]\ndefault_memory = 512\n[runtime]\ncdi_spec_dirs = ["{directory}"]\n')
    run = ("run", "--rm", "--runtime", RUNTIME, "--runtime-config-path", str(configuration))
    asked = (*run, "--annotation", "cdi.k8s.io/disk=kata.test/disk=fast", BUSYBOX, unique_id(TEST_PREFIX))
    said = containerd.ctr(*asked, "sh", "-c", "mke2fs $DISK >/dev/null && ls -l /dev/fast").stdout
    assert said.startswith("b")
    assert "ef53" in host("sh", "-c", MAGIC.format(loop.device))
    broken = (*run, "--annotation", "cdi.k8s.io/disk=nonsense", BUSYBOX, unique_id(TEST_PREFIX), "true")
    refused = containerd.ctr(*broken, check=False)
    assert "invalid CDI device name" in refused.stderr
    assert loop.is_free
