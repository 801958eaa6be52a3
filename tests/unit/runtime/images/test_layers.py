"""Layers unpacked one by one: an overlay of them is the image."""

from __future__ import annotations

import os
import random
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from kata.runtime.images.archive import open_archive
from kata.runtime.images.unpack import NotSeparate, unpack

from .builder import Oci, directory, entry, hard_link, layer, symlink
from .test_unpack import facts, root_only

pytestmark = root_only


def overlay(layers: list[Path], target: Path) -> Path:
    """What overlayfs makes of layers, uppermost first (the kernel's Documentation/filesystems/overlayfs.rst)."""
    names = sorted({name for one in layers for name in os.listdir(one)})
    for name in names:
        found: list[Path] = []
        for one in layers:
            path = one / name
            if not os.path.lexists(path):
                continue
            info = path.lstat()
            if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
                break  # a whiteout
            if not stat.S_ISDIR(info.st_mode):
                found = found or [path]
                break
            found.append(path)
            if "trusted.overlay.opaque" in os.listxattr(path):
                break
        if not found:
            continue
        if found[0].is_dir() and not found[0].is_symlink():
            (target / name).mkdir()
            overlay(found, target / name)
        else:
            shutil.copy2(found[0], target / name, follow_symlinks=False)
            _like(found[0], target / name)
    _like(layers[0], target)
    if "trusted.overlay.opaque" in os.listxattr(target):
        os.removexattr(target, "trusted.overlay.opaque")
    return target


def _like(source: Path, target: Path) -> None:
    info = source.lstat()
    os.chown(target, info.st_uid, info.st_gid, follow_symlinks=False)
    shutil.copystat(source, target, follow_symlinks=False)


def both(tmp_path: Path, *layers: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is in the image unpacked as a whole, and in the overlay of its layers."""
    with open_archive(Oci(*layers).write(tmp_path / "image.tar")) as image:
        unpack(image, tmp_path / "whole")
        trees = [tmp_path / str(number) for number in range(len(layers))]
        for number, tree in enumerate(trees):
            unpack(image, tree, only=number)
    (tmp_path / "overlay").mkdir()
    merged = overlay(trees[::-1], tmp_path / "overlay")
    found = tuple(
        # Links of a file and directories' times are those of one layer.
        {name: (*fact[:4], *fact[5:6], *fact[7:]) for name, fact in facts(one).items()}
        for one in (tmp_path / "whole", merged)
    )
    return found[0], found[1]


BASE = (
    directory("etc"),
    entry("etc/a", b"one"),
    entry("etc/b", b"two", mode=0o4755, uid=7, gid=8),
    directory("d", mode=0o1777),
    directory("d/e"),
    entry("d/e/f", b"three"),
    symlink("l", "etc"),
)


@pytest.mark.parametrize(
    "upper",
    [
        pytest.param((directory("etc"), entry("etc/.wh.a", b""), entry("etc/c", b"new")), id="a file is removed"),
        pytest.param((entry(".wh.d", b""),), id="a directory is removed"),
        pytest.param((entry(".wh.d", b""), directory("d"), entry("d/new", b"n")), id="a directory is replaced"),
        pytest.param((directory("d"), entry("d/new", b"n"), entry(".wh.d", b"")), id="and its whiteout comes last"),
        pytest.param((directory("d"), entry("d/.wh..wh..opq", b""), entry("d/x", b"x")), id="an opaque directory"),
        pytest.param((directory("d"), entry("d/x", b"x"), entry("d/.wh..wh..opq", b"")), id="and its mark comes last"),
        pytest.param((entry("d", b"a file now"),), id="a file in place of a directory"),
        pytest.param((directory("l"), entry("l/x", b"x")), id="a directory in place of a link"),
        pytest.param((directory("d", mode=0o700, uid=3),), id="a directory's owner and mode"),
        pytest.param((entry(".wh.l", b""), symlink("l", "d")), id="a link is replaced"),
        pytest.param((entry(".wh.none", b""),), id="nothing is removed"),
        pytest.param((directory("d"), directory("d/e"), entry("d/e/.wh.f", b"")), id="deeper"),
    ],
)
def test_an_overlay_of_layers_is_the_image(tmp_path: Path, upper: tuple[Any, ...]) -> None:
    whole, merged = both(tmp_path, layer(*BASE), layer(*upper))
    assert merged == whole


def test_layers_by_chance(tmp_path: Path) -> None:
    for seed in range(60):
        chance = random.Random(seed)
        layers = [layer(*BASE), *(layer(*_random_entries(chance)) for _ in range(3))]
        place = tmp_path / str(seed)
        place.mkdir()
        whole, merged = both(place, *layers)
        assert merged == whole, f"seed {seed}"


def _random_entries(chance: random.Random) -> list[Any]:
    """Entries of one layer, directories before what is in them."""
    entries: list[Any] = []
    for parent in ("", "d/", "d/e/"):
        if parent:
            if chance.random() < 0.4:
                break
            entries.append(directory(parent.rstrip("/"), mode=chance.choice((0o755, 0o700))))
            if chance.random() < 0.2:
                entries.append(entry(f"{parent}.wh..wh..opq", b""))
        for name in chance.sample(("a", "b", "f"), chance.randrange(3)):
            what = chance.choice(("file", "whiteout", "directory", "link"))
            made = {
                "file": entry(parent + name, str(chance.random()).encode()),
                "whiteout": entry(f"{parent}.wh.{name}", b""),
                "directory": directory(parent + name),
                "link": symlink(parent + name, "x"),
            }
            entries.append(made[what])
    return entries


@pytest.mark.parametrize(
    "upper",
    [
        pytest.param((entry("d/x", b"x"),), id="in a directory of the layer below"),
        pytest.param((entry("l/x", b"x"),), id="through a link of the layer below"),
        pytest.param((symlink("m", "d/e"), entry("m/x", b"x")), id="through a link to the layer below"),
        pytest.param((hard_link("h", "etc/a"),), id="a hard link into the layer below"),
        pytest.param((directory("etc"), hard_link("h", "etc/a")), id="whose directory is there"),
        pytest.param((entry("d/.wh..wh..opq", b""),), id="an opaque directory that is not there"),
        pytest.param((entry("d/.wh.e", b""),), id="a whiteout in one that is not there"),
    ],
)
def test_what_needs_the_layer_below(tmp_path: Path, upper: tuple[Any, ...]) -> None:
    with pytest.raises(NotSeparate):
        both(tmp_path, layer(*BASE), layer(*upper))
    assert not (tmp_path / "1").exists()


def test_a_layer_cannot_forge_marks_of_the_overlay(tmp_path: Path) -> None:
    forged = directory("d", pax_headers={"SCHILY.xattr.trusted.overlay.redirect": "/etc"})
    with open_archive(Oci(layer(*BASE), layer(forged)).write(tmp_path / "image.tar")) as image:
        unpack(image, tmp_path / "t", only=1)
    assert os.listxattr(tmp_path / "t/d") == []
