"""`kata run IMAGE`: the layers on disks, an overlay in the guest, and nothing left but the layer cache."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.cli.gc import RUN_ROOT
from kata.runtime.config.settings import UPPER
from tests.support import leaks
from tests.support.images import busybox_rootfs, layer_of
from tests.support.mounts import in_mount_namespace
from tests.unit.runtime.images.builder import Oci, directory, entry, hard_link, layer

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

KATA = str(Path(sys.executable).with_name("kata"))
PREFIX = f"{leaks.TEST_PREFIX}l{os.getpid()}-"
TIMEOUT_S = 120.0
#: Seconds for a guest that writes more than its memory, which takes half a minute of CPU time.
_MUCH_S = 600.0

_names = (f"{PREFIX}{number}" for number in itertools.count())


@pytest.fixture
def name() -> str:
    return next(_names)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    with leaks.nothing_stays(PREFIX):
        yield


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers: busybox, what is added and removed, and a third that removes some of that."""
    place = tmp_path_factory.mktemp("layers")
    (place / "rootfs").mkdir()
    busybox_rootfs(place / "rootfs")
    (place / "rootfs/root/removed").write_text("no")
    (place / "rootfs/var/old").mkdir()
    (place / "rootfs/var/old/file").write_text("no")
    second = layer(
        directory("etc"),
        entry("etc/passwd", b"root:x:0:0::/root:/bin/sh\njoe:x:1000:1000::/home:/bin/sh\n"),
        directory("root", mode=0o700),
        entry("root/.wh.removed", b""),
        entry("root/a", b"layer two", mode=0o640, uid=12, gid=34, mtime=987654321.5),
        hard_link("root/b", "root/a"),
        directory("home", mode=0o2770, uid=1000, gid=1000),
        entry("home/script", b"#!/bin/sh\necho script of $(id -un)\n", mode=0o755, uid=1000),
    )
    third = layer(
        directory("var"),
        directory("var/old"),
        entry("var/old/.wh..wh..opq", b""),
        entry("var/old/new", b"new"),
    )
    archive = Oci(layer_of(place / "rootfs"), second, third, config={"Cmd": ["sh"], "Env": ["PATH=/bin"]})
    return archive.write(place / "image.tar")


def kata(*arguments: str | Path, timeout: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([KATA, *map(str, arguments)], capture_output=True, text=True, timeout=timeout)
    # What takes seconds, as the making of a template does, is told on the same stream.
    done.stderr = "".join(line for line in done.stderr.splitlines(True) if done.returncode or "kata: " not in line)
    return done


@pytest.fixture
def configured(tmp_path: Path) -> list[str | Path]:
    """Options for a layer cache of this test, and what else it configures."""
    configuration = tmp_path / "configuration.toml"
    configuration.write_text(f'[runtime]\nlayer_cache_path = "{tmp_path}/layers"\n')
    return ["--config", configuration]


LOOK = """
    cat /root/a; echo; stat -c '%n %a %u %g %h %Y' / /root/a /root/b /home; ls /root /var/old
    echo above >>/root/a; cat /root/b; rm /root/b /var/old/new; ls /root /var/old
    mkfifo /home/f; mknod /home/n c 1 3; ln -s f /home/l; mv /etc/group /etc/moved; rm -r /usr; mkdir /usr; ls /usr
    df / | tail -n 1 | while read from all rest; do echo $from $((all > 19000000)); done
"""


def test_the_layers_are_the_image(image: Path, name: str, configured: list[str | Path], tmp_path: Path) -> None:
    for _ in range(2):
        done = kata("run", *configured, "--name", name, image, "--", "sh", "-c", LOOK)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            "layer two",
            "/ 755 0 0 1 " + done.stdout.splitlines()[1].rpartition(" ")[2],
            "/root/a 640 12 34 2 987654321",
            "/root/b 640 12 34 2 987654321",
            f"/home 2770 1000 1000 2 {done.stdout.splitlines()[4].rpartition(' ')[2]}",
            "/root:", "a", "b", "", "/var/old:", "new",
            # A file that was copied up has left its other names, as in every overlay.
            "layer two/root:", "a", "", "/var/old:",
            "overlay 1",
        ]  # fmt: skip
        kept = sorted(os.listdir(tmp_path / "layers"))
        assert [key.partition("-")[0] for key in kept] == ["base", "layer", "layer"]


def test_users_are_those_of_the_layers(image: Path, name: str, configured: list[str | Path]) -> None:
    done = kata("run", *configured, "--name", name, "-u", "joe", image, "--", "/home/script")
    assert (done.returncode, done.stdout, done.stderr) == (0, "script of joe\n", "")


@pytest.mark.long
@pytest.mark.timeout(1.5 * _MUCH_S)
def test_more_than_the_memory_can_be_written(image: Path, name: str, configured: list[str | Path]) -> None:
    script = (
        "dd if=/dev/zero of=/big bs=1M count=300 2>/dev/null && wc -c </big && sync && cat /sys/fs/cgroup/memory.max"
    )
    command = ("run", *configured, "--name", name, "--memory", "64M", image, "--", "sh", "-c", script)
    done = kata(*command, timeout=_MUCH_S)
    assert (done.returncode, done.stdout.split()) == (0, [str(300 << 20), str(64 << 20)]), done.stderr


def test_the_guests_memory_instead(image: Path, name: str, configured: list[str | Path]) -> None:
    with open(configured[1], "a") as configuration:
        configuration.write('rootfs_upper = "memory"\n')
    script = "echo x >/root/new; cat /root/new; mount | grep ' / '; ls /sys/block | grep -c vd"
    done = kata("run", *configured, "--name", name, image, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # The guest's own disk, and five for any root of layers.
    assert (lines[0], lines[2]) == ("x", "6")
    assert lines[1].startswith("overlay on / type overlay (rw")


def test_without_disks_the_image_is_unpacked(
    image: Path, name: str, configured: list[str | Path], tmp_path: Path
) -> None:
    with open(configured[1], "a") as configuration:
        configuration.write("[hypervisor.qemu]\ndisable_block_device_use = true\n")
    script = "cat /root/a; ls /root /var/old; mount | grep -c '^overlay on / '; ls /sys/block | grep -c vd"
    done = kata("run", *configured, "--name", name, image, "--", "sh", "-c", script)
    assert done.stdout.splitlines() == ["layer two/root:", "a", "b", "", "/var/old:", "new", "0", "1"], done.stderr
    assert not (tmp_path / "layers").exists()
    assert not (RUN_ROOT / name).exists()


def test_a_full_disk_of_the_host_is_an_error_in_the_guest(
    image: Path, name: str, configured: list[str | Path], tmp_path: Path
) -> None:
    script = """
        dd if=/dev/zero of=/big bs=1M count=100 conv=fsync 2>&1 | grep -o 'nput/output error' | head -n 1
        echo still here; cat /root/a
    """
    command = f'mount -t tmpfs -o size=40m none {UPPER} && exec {KATA} "$@"'
    UPPER.mkdir(parents=True, exist_ok=True)
    arguments = ("run", *map(str, configured), "--name", name, str(image), "--", "sh", "-c", script)
    done = subprocess.run(
        in_mount_namespace("sh", "-c", command, "sh", *arguments), capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.stdout.splitlines() == ["nput/output error", "still here", "layer two"], done.stderr


def test_a_full_layer_cache_is_told(image: Path, name: str, configured: list[str | Path], tmp_path: Path) -> None:
    layers = tmp_path / "layers"
    layers.mkdir()
    command = f'mount -t tmpfs -o size=600k none {layers} && {KATA} "$@"; echo $? $(ls -A {layers})'
    arguments = ("run", *map(str, configured), "--name", name, str(image), "--", "true")
    done = subprocess.run(
        in_mount_namespace("sh", "-c", command, "sh", *arguments), capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.stdout.split() == ["125"], done.stderr
    error, hint = done.stderr.splitlines()
    assert "layer 1 of 3" in error
    assert error.endswith("no space left on device")
    assert hint.startswith("hint: free some space")
    assert not (RUN_ROOT / name).exists()


def test_a_broken_image_leaves_no_layer(image: Path, name: str, configured: list[str | Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    subprocess.run(["tar", "--extract", f"--file={image}", f"--directory={broken}"], check=True, timeout=60)
    largest = max((broken / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size - 1000)
    done = kata("run", *configured, "--name", name, broken)
    assert done.returncode == 125
    assert "layer 1 of 3" in done.stderr
    assert os.listdir(tmp_path / "layers") == []
