"""The image that tests and the demonstration use."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kata.osbuilder import store
from kata.runtime.images.archive import open_archive
from kata.runtime.images.model import ImageConfig
from kata.runtime.images.unpack import unpack
from kata.runtime.images.user import resolve_user
from tests.support.images import busybox_archive, write_oci_archive

needs_image = pytest.mark.skipif(not (store.images_root() / store.CURRENT).exists(), reason="needs a guest image")


@needs_image
def test_it_opens_unpacks_and_runs(tmp_path: Path) -> None:
    archive = busybox_archive(tmp_path / "busybox.tar")
    assert os.listdir(tmp_path) == ["busybox.tar"]
    with open_archive(archive, reference="docker.io/library/busybox:latest") as image:
        assert image.config.cmd == ("sh",)
        unpack(image, tmp_path / "rootfs")
    assert resolve_user(tmp_path / "rootfs", "nobody").uid == 65534
    if os.geteuid() != 0:
        pytest.skip("needs root: chroot")
    command = ["chroot", str(tmp_path / "rootfs"), "/bin/sh", "-c", "echo hello | tr h j"]
    assert subprocess.run(command, capture_output=True, timeout=30, check=True).stdout == b"jello\n"


@needs_image
def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = (busybox_archive(tmp_path / name).read_bytes() for name in ("1.tar", "2.tar"))
    assert one == two


def test_the_configuration_arrives(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    config = ImageConfig(("/e",), ("c",), ("A=1",), "7:8", "/w", "SIGUSR1", {"l": "v"})
    with open_archive(write_oci_archive(tmp_path / "root", config, tmp_path / "image.tar", "example.org/x:1")) as image:
        assert image.config == config
