"""An image's root as disks: how many there are, what is shared, and who its users are."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kata.runtime.images.archive import open_archive
from kata.runtime.images.layer_cache import LayerCache
from kata.runtime.images.root_disks import MAX_DISKS, root_disks

from .builder import Oci, directory, entry, layer, symlink
from .test_unpack import root_only

pytestmark = [
    root_only,
    pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="needs mkfs.erofs"),
]

BASE = layer(directory("etc"), entry("etc/passwd", b"root:x:0:0\n"), entry("etc/group", b"root:x:0:\n"))


class Host:
    """A host with a layer cache."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._images = 0
        self.cache = LayerCache(directory / "layers", 1 << 30)

    def run(self, *layers: bytes) -> tuple[list[str], dict[str, str]]:
        """The kinds of an image's disks, uppermost first, and what its users' files say."""
        self._images += 1
        users = self._directory / f"users{self._images}"
        archive = Oci(*layers).write(self._directory / f"{self._images}.tar")
        with open_archive(archive) as image, root_disks(image, self.cache, users) as disks:
            assert {entry.key for entry in self.cache.entries() if entry.in_use} == {disk.parent.name for disk in disks}
            for disk in disks:
                subprocess.run(["fsck.erofs", str(disk)], check=True, capture_output=True, timeout=60)
            kinds = [disk.parent.name.split("-")[0] for disk in disks]
        return kinds, {path.name: path.read_text() for path in (users / "etc").iterdir()}

    def kept(self) -> int:
        assert not any(entry.in_use for entry in self.cache.entries())
        return len(self.cache.entries())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_disk_for_each_layer(host: Host) -> None:
    kinds, users = host.run(BASE, layer(directory("etc"), entry("etc/passwd", b"joe:x:7:7\n")))
    assert kinds == ["layer", "base"]
    # Each from the uppermost layer that has it.
    assert users == {"passwd": "joe:x:7:7\n", "group": "root:x:0:\n"}


def test_images_share_layers(host: Host) -> None:
    for text in (b"1", b"2", b"1"):
        host.run(BASE, layer(entry("file", text)))
    assert host.kept() == 3
    # The same layer above another one is another disk: there it may have whiteouts.
    host.run(layer(directory("x")), BASE)
    assert host.kept() == 5


@pytest.mark.parametrize(
    "upper",
    [
        pytest.param((entry("etc/x", b"x"),), id="it adds to a directory that it does not have"),
        pytest.param((directory(".", mode=0o700),), id="another root directory"),
        pytest.param((directory("etc"), symlink("etc/passwd", "../p")), id="users behind a link"),
        pytest.param((directory("etc"), entry("etc/.wh.passwd", b"")), id="users removed"),
        pytest.param((directory("etc"), entry("etc/.wh..wh..opq", b"")), id="all of etc removed"),
        pytest.param((symlink("etc", "d"),), id="etc is a link"),
    ],
)
def test_one_disk_where_layers_cannot_be_separated(host: Host, upper: tuple[Any, ...]) -> None:
    kinds, _ = host.run(BASE, layer(*upper))
    assert kinds == ["image"]
    kept = host.kept()
    # And it is not tried again.
    assert host.run(BASE, layer(*upper))[0] == ["image"]
    assert host.kept() == kept


def test_users_behind_a_link_of_the_only_layer(host: Host) -> None:
    kinds, users = host.run(layer(directory("etc"), symlink("etc/passwd", "/usr/p"), entry("usr/p", b"p")))
    assert kinds == ["base"]
    assert users == {"passwd": "p"}


def test_users_of_an_image_that_is_one_disk(host: Host) -> None:
    _, users = host.run(BASE, layer(entry("etc/x", b"")), layer(directory("etc"), symlink("etc/group", "x")))
    assert users == {"passwd": "root:x:0:0\n", "group": ""}


def test_many_layers_are_one_disk(host: Host) -> None:
    layers = [layer(entry(str(number), b"x")) for number in range(MAX_DISKS)]
    assert host.run(BASE, *layers)[0] == ["image"]
    assert host.run(*layers)[0] == ["layer"] * (MAX_DISKS - 1) + ["base"]


def test_an_image_without_layers(host: Host) -> None:
    assert host.run() == (["image"], {})
