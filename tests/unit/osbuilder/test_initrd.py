from __future__ import annotations

import re
import subprocess
from importlib.resources import files

from kata.osbuilder import initrd

SCRIPT = files("kata.osbuilder").joinpath("init.sh").read_text()

# What the shell does by itself.
BUILTINS = {
    "[",
    "break",
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


def test_every_command_of_the_script_is_in_the_initrd() -> None:
    archive = initrd.build(b"", [])
    commands = set(re.findall(r"(?:^|\|\||&&)\s*(?:exec /bin/)?([a-z_]+) ", SCRIPT, re.MULTILINE)) - BUILTINS
    assert {"mount", "insmod", "switch_root", "reboot", "poweroff"} <= commands
    for command in commands:
        assert f"bin/{command}\0".encode() in archive
