from __future__ import annotations

import re
import subprocess
from importlib.resources import files
from pathlib import Path

from kata.osbuilder import cpio, initrd

SCRIPT = files("kata.osbuilder").joinpath("init.sh").read_text()

# What the shell does by itself.
BUILTINS = {
    "[",
    "break",
    "cd",
    "case",
    "do",
    "done",
    "echo",
    "esac",
    "exec",
    "exit",
    "export",
    "fail",
    "for",
    "if",
    "read",
    "until",
    "while",
}


def test_modules_are_listed_in_the_order_of_loading() -> None:
    modules = [("kernel/z/virtio.ko", b"1"), ("kernel/a/virtio_ring.ko", b"22")]
    archive = initrd.build(b"busybox", modules)
    assert b"virtio.ko\nvirtio_ring.ko\n" in archive
    assert archive == initrd.build(b"busybox", modules)
    assert archive != initrd.build(b"busybox", list(reversed(modules)))


def test_the_script_is_in_the_archive_as_it_is() -> None:
    assert SCRIPT.encode() in initrd.build(b"busybox", [])


def test_the_script_is_valid() -> None:
    done = subprocess.run(["sh", "-n"], input=SCRIPT, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_programs_are_in_the_archive_with_their_directories() -> None:
    archive = initrd.build(b"", [], root_type="ext4", disk="/dev/vda1", programs={"lib/x/libc.so": b"content"})
    assert archive.index(b"lib\0") < archive.index(b"lib/x\0") < archive.index(b"lib/x/libc.so\0")
    assert cpio.content(archive, "lib/x/libc.so") == b"content"
    assert cpio.content(archive, "modules/root") == b"ext4 /dev/vda1\n"


def test_an_initrd_can_be_the_whole_root(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/busybox").write_bytes(b"box")
    (tmp_path / "bin/busybox").chmod(0o755)
    (tmp_path / "bin/sh").symlink_to("busybox")
    (tmp_path / "dev").mkdir()
    archive = initrd.build_alone(tmp_path)
    assert archive == initrd.build_alone(tmp_path)
    assert cpio.content(archive, "init") == SCRIPT.encode()
    assert cpio.content(archive, "bin/busybox") == b"box"
    assert cpio.content(archive, "bin/sh") == b"busybox"
    assert archive.count(b"dev/console\0") == 1


def test_every_command_of_the_script_is_in_the_initrd() -> None:
    archive = initrd.build(b"", [], programs={"bin/dmsetup": b"", "lib/x/libc.so": b""})
    commands = set(re.findall(r"(?:^|\|\||&&)\s*(?:exec /bin/)?([a-z_]+) ", SCRIPT, re.MULTILINE)) - BUILTINS
    assert {"mount", "insmod", "switch_root", "reboot", "poweroff"} <= commands
    for command in commands:
        assert f"bin/{command}\0".encode() in archive
