"""What of the root can be made without root; the whole is built and booted in tests/vm/test_image_boot.py."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from kata.architecture import ARM64
from kata.errors import FailedPrecondition
from kata.osbuilder import rootfs


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_same_content_gives_the_same_archive(twins: list[Path]) -> None:
    digests = set()
    for twin in twins:
        rootfs.pack(twin, twin.parent / "root.tar")
        digests.add(digest(twin.parent / "root.tar"))
    assert len(digests) == 1


def test_an_archive_is_unpacked_as_it_was(twins: list[Path], tmp_path: Path) -> None:
    rootfs.pack(twins[0], tmp_path / "root.tar")
    rootfs.unpack_archive(tmp_path / "root.tar", tmp_path / "copy")
    assert (tmp_path / "copy/b/3").read_text() == "b/3" * 100
    assert (tmp_path / "copy/a/0").stat().st_mode & 0o7777 == 0o4755
    assert os.readlink(tmp_path / "copy/link") == os.readlink(twins[0] / "link")


def other_root(where: Path) -> Path:
    """A root that is not merged, with links that lead out of it, and things that must not be taken."""
    for name in ("bin/tool", "lib/ld-musl.so", "usr/bin/busybox", "etc/passwd", "etc/os-release", "dev/x", "tmp/x"):
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_text(f"other {name}")
    for name in ("etc/ld.so.preload", "usr/lib/x/glibc-hwcaps/libc.so.6", "usr/lib/python3.13/evil.py"):
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_text("evil")
    (where / "etc/resolv.conf").symlink_to("/etc/of-the-host")
    (where / "opt").symlink_to("/etc")
    (where / "bin/sh").symlink_to("/bin/busybox")
    return where


def own_root(root: Path) -> Path:
    for name in ("usr/bin", "usr/lib/python3.13", "usr/lib/x", "etc"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "usr/bin/python3").symlink_to("python3.13")
    for name in ("usr/bin/busybox", "etc/passwd", "etc/resolv.conf"):
        (root / name).write_text("own")
    return root


def test_another_root_fills_what_is_not_there(tmp_path: Path) -> None:
    root = own_root(tmp_path / "root")
    rootfs.fill(root, other_root(tmp_path / "other"))
    assert (root / "usr/bin/tool").read_text() == "other bin/tool"
    assert (root / "usr/lib/ld-musl.so").read_text() == "other lib/ld-musl.so"
    assert (root / "etc/os-release").read_text() == "other etc/os-release"
    assert os.readlink(root / "usr/bin/sh") == "/bin/busybox"
    for name in ("usr/bin/busybox", "etc/passwd", "etc/resolv.conf"):
        assert (root / name).read_text() == "own"
    assert os.readlink(root / "bin") == "usr/bin"
    for name in ("dev", "tmp", "etc/ld.so.preload", "usr/lib/x/glibc-hwcaps", "usr/lib/python3.13/evil.py"):
        assert not os.path.lexists(root / name), name


def test_another_root_of_another_architecture_is_refused(tmp_path: Path) -> None:
    root, other = own_root(tmp_path / "root"), other_root(tmp_path / "other")
    arm64 = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00"
    (other / "bin/tool").write_bytes(arm64)
    with pytest.raises(FailedPrecondition, match=r"bin/tool of .* is not a program for x86_64") as caught:
        rootfs.fill(root, other)
    assert caught.value.hint == "take the image for linux/amd64"
    assert not (root / "usr/bin/tool").exists()
    rootfs.fill(root, other, ARM64)
    assert (root / "usr/bin/tool").exists()
