"""Direct volumes as a storage driver uses them: recorded by `kata direct-volume`, mounted by the guest, grown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kata.runtime.ledger.names import split
from kata.runtime.storage import direct_volume
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX
from tests.support.leaks import TEST_PREFIX
from tests.support.waiting import eventually

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]

KATA = str(Path(sys.executable).with_name("kata"))
_TIMEOUT_S = 60.0
MIB = 1 << 20
#: MiB of a new disk, and of one that has grown: xfs has no smaller one.
SIZES = {"ext4": (64, 112), "xfs": (320, 448)}


def kata(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [KATA, "direct-volume", *arguments]
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=_TIMEOUT_S)


@contextmanager
def recorded(path: Path, device: str, fstype: str, **metadata: str) -> Iterator[None]:
    info = {"volume-type": "block", "device": device, "fstype": fstype, "metadata": metadata}
    kata("add", "--volume-path", str(path), "--mount-info", json.dumps(info))
    try:
        yield
    finally:
        kata("remove", "--volume-path", str(path))


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Where the host would have the volume mounted."""
    path = tmp_path / "volume"
    path.mkdir()
    return path


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str, str], tuple[str, Callable[[], None]]]]:
    """Makes a disk with a file system, as an image or a loop device; returns what it is, and what makes it larger."""
    loops = []

    def make(kind: str, fstype: str) -> tuple[str, Callable[[], None]]:
        image = tmp_path / "disk.img"
        image.touch()
        size, grown = SIZES[fstype]
        os.truncate(image, size * MIB)
        subprocess.run([f"mkfs.{fstype}", "-q", image], check=True, capture_output=True, timeout=_TIMEOUT_S)
        if kind == "image":
            # Growing it is left to QEMU.
            return str(image), lambda: None
        command = ["losetup", "--find", "--show", str(image)]
        device = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S).stdout.strip()
        loops.append(device)

        def grow() -> None:
            os.truncate(image, grown * MIB)
            subprocess.run(["losetup", "--set-capacity", device], check=True, timeout=_TIMEOUT_S)

        return device, grow

    yield make
    for device in loops:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=_TIMEOUT_S)


@contextmanager
def container(containerd: PrivateContainerd, volume: Path) -> Iterator[Callable[[str], str]]:
    """One that has the volume as /data; runs scripts in it."""
    name = unique_id(TEST_PREFIX)
    mount = f"type=bind,src={volume},dst=/data,options=rbind:rw"
    containerd.ctr("run", "-d", "--runtime", RUNTIME, "--mount", mount, BUSYBOX, name, "sleep", "600")
    try:
        yield (
            lambda script: containerd.ctr("task", "exec", "--exec-id", unique_id("e"), name, "sh", "-c", script).stdout
        )
    finally:
        containerd.ctr("task", "rm", "--force", name, check=False)
        containerd.ctr("container", "rm", name)


def usage(volume: Path, kind: int) -> dict[str, Any]:
    (found,) = (
        one for one in json.loads(kata("stats", "--volume-path", str(volume)).stdout)["usage"] if one["unit"] == kind
    )
    return dict(found)


@pytest.mark.parametrize(("kind", "fstype"), [("image", "ext4"), ("loop", "ext4"), ("loop", "xfs")])
def test_a_direct_volume_is_used_asked_about_and_grown(
    containerd: PrivateContainerd, volume: Path, make: Any, kind: str, fstype: str
) -> None:
    device, grow = make(kind, fstype)
    path = str(volume)
    size, grown = SIZES[fstype]
    some = size // 5
    #: More than there was place for before.
    more = size - some + (grown - size) // 4
    with recorded(volume, device, fstype, fsGroup="1234"), container(containerd, volume) as run:
        assert run("grep ' /data ' /proc/mounts").split()[2] == fstype
        assert run("stat -c '%g %A' /data; echo hello >/data/file; stat -c %g /data/file").split() == [
            "1234",
            "drwxrwsr-x",
            "1234",
        ]
        assert list(volume.iterdir()) == [], "the host has mounted nothing"
        before, inodes = usage(volume, 1), usage(volume, 2)
        assert 0 < before["total"] < size * MIB
        assert before["used"] + before["available"] <= before["total"]
        run(f"dd if=/dev/zero of=/data/big bs=1M count={some} 2>/dev/null; sync")
        assert usage(volume, 1)["used"] - before["used"] > some * 0.9 * MIB
        assert usage(volume, 2)["used"] == inodes["used"] + 1
        grow()
        kata("resize", "--volume-path", path, "--size", str(grown * MIB))
        after = usage(volume, 1)
        assert after["total"] - before["total"] > (grown - size) * 0.9 * MIB
        assert os.path.getsize(volume.parent / "disk.img") == grown * MIB
        run(f"dd if=/dev/zero of=/data/bigger bs=1M count={more} 2>/dev/null && cat /data/file")
        assert int(run("df -m /data | tail -1").split()[1]) == round(after["total"] / MIB)
        if kind == "image":
            shrunk = kata("resize", "--volume-path", path, "--size", str(size * MIB), check=False)
            assert (shrunk.returncode, "cannot shrink" in shrunk.stderr) == (1, True), shrunk.stderr
        else:
            refused = kata("resize", "--volume-path", path, "--size", str(2 * grown * MIB), check=False)
            assert refused.returncode == 1, "the device is smaller"
            assert "block_resize" in refused.stderr
    gone = kata("stats", "--volume-path", path, check=False)
    assert (gone.returncode, gone.stderr.count("\n")) == (1, 1)
    assert "no direct volume is recorded" in gone.stderr


def test_the_record_names_the_sandbox_until_it_has_ended_however_it_ends(
    containerd: PrivateContainerd, volume: Path, make: Any
) -> None:
    device, _ = make("loop", "ext4")
    with recorded(volume, device, "ext4"):
        with container(containerd, volume):
            assert len(direct_volume.users(str(volume))) == 1
        assert direct_volume.users(str(volume)) == []
        nobody = kata("stats", "--volume-path", str(volume), check=False)
        assert (nobody.returncode, "no sandbox uses the direct volume" in nobody.stderr) == (1, True)
        with container(containerd, volume):
            (sandbox,) = direct_volume.users(str(volume))
            containerd.kill_sandbox(split(sandbox)[0], shim=True, vm=False)
        # containerd executes `delete` when it notices, and does not make ctr wait for that.
        eventually(lambda: direct_volume.users(str(volume)), "no sandbox has the volume", lambda users: not users)
        os.close(os.open(device, os.O_RDWR | os.O_EXCL))


def test_a_broken_record_and_a_missing_disk_are_told(
    containerd: PrivateContainerd, volume: Path, tmp_path: Path
) -> None:
    mount = f"type=bind,src={volume},dst=/data,options=rbind:rw"
    start = ("run", "--rm", "--runtime", RUNTIME, "--mount", mount, BUSYBOX)
    with recorded(volume, str(tmp_path / "nowhere"), "ext4"):
        done = containerd.ctr(*start, unique_id(TEST_PREFIX), "true", check=False)
        assert f"disk {tmp_path}/nowhere does not exist" in done.stderr
        Path(direct_volume.user_file(str(volume), "mountInfo.json")).write_text("nonsense")
        done = containerd.ctr(*start, unique_id(TEST_PREFIX), "true", check=False)
        assert "direct volume: mount info is not JSON" in done.stderr
    bad = kata("add", "--volume-path", str(volume), "--mount-info", '{"volume-type": "spdkvol"}', check=False)
    assert (bad.returncode, "volume-type 'spdkvol' is not supported" in bad.stderr) == (1, True)
