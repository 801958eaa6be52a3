"""An image's root file system as read-only disks: one for each layer, or one for all of them.

One for all if there are many layers, since each disk takes a slot of the VM and time to be plugged, and if a layer
cannot be understood without those below it. Disks come from the layer cache, by the digests of the layers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from kata.linux.openat2 import openat2
from kata.runtime.images.layer_cache import TREE, LayerCache, LayerDisk
from kata.runtime.images.model import Image
from kata.runtime.images.unpack import NotSeparate, unpack

#: Disks of one image at most.
MAX_DISKS = 8

#: Beside each disk: the files that users are looked up in, as far as the layer has them, and what is said of the layer.
_USERS = ("etc/passwd", "etc/group")
_FACTS = "facts.json"
_OPAQUE = "trusted.overlay.opaque"


@contextlib.contextmanager
def root_disks(image: Image, cache: LayerCache, users: Path) -> Iterator[tuple[Path, ...]]:
    """Have the disks of an image, which are made if the cache does not have them; they stay within the block.

    Args:
        image: opened.
        cache: the layer cache.
        users: a directory to be made, which gets the image's /etc/passwd and /etc/group.

    Yields:
        The disks, uppermost first.

    Raises:
        KataError: as `unpack` and `LayerCache.obtain`.
    """
    with contextlib.ExitStack() as held:
        disks = _obtain(image, cache, held)
        (users / "etc").mkdir(parents=True)
        for name in _USERS:
            source = next((disk.directory / name for disk in disks if (disk.directory / name).exists()), None)
            if source:
                shutil.copyfile(source, users / name)
        yield tuple(disk.disk for disk in disks)


def _obtain(image: Image, cache: LayerCache, held: contextlib.ExitStack) -> list[LayerDisk]:
    whole = _key_of_all(image)
    merged = cache.find(whole)
    if merged is None and 0 < len(image.layers) <= MAX_DISKS:
        with contextlib.ExitStack() as each, contextlib.suppress(NotSeparate):
            disks = _obtain_each(image, cache, each)
            held.enter_context(each.pop_all())
            return disks
    if merged is None:
        merged = cache.obtain(whole, _filling(image, None))
    held.callback(merged.close)
    return [merged]


def _obtain_each(image: Image, cache: LayerCache, held: contextlib.ExitStack) -> list[LayerDisk]:
    """A disk for each layer, uppermost first.

    Raises:
        NotSeparate: an overlay of them would not be the image.
    """
    disks: list[LayerDisk] = []
    root = None
    for number, layer in enumerate(image.layers):
        kind = "layer" if number else "base"
        disk = cache.obtain(f"{kind}-{layer.diff_id.replace(':', '-')}", _filling(image, number))
        held.callback(disk.close)
        disks.insert(0, disk)
        facts = json.loads((disk.directory / _FACTS).read_bytes())
        if len(image.layers) > 1 and (facts["linked"] or facts["root"] != (root or facts["root"])):
            # The overlay has the uppermost layer's root directory, and users are looked up layer by layer.
            raise NotSeparate(layer.name)
        root = facts["root"]
    return disks


def _key_of_all(image: Image) -> str:
    digests = "\n".join(layer.diff_id for layer in image.layers)
    return f"image-sha256-{hashlib.sha256(digests.encode()).hexdigest()}"


def _filling(image: Image, only: int | None) -> Callable[[Path], Path]:
    def fill(directory: Path) -> Path:
        tree = directory / TREE
        unpack(image, tree, only=only)
        info = tree.stat()
        facts = {
            "root": [stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid],
            "linked": _keep_users(tree, directory),
        }
        (directory / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
        return tree

    return fill


def _keep_users(tree: Path, directory: Path) -> bool:
    """Copy the files of users, and say whether a layer above or below might have a word in where they are."""
    linked = False
    (directory / "etc").mkdir()
    root = os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in _USERS:
            linked |= not _is_plain(tree / name)
            with contextlib.suppress(OSError):
                fd = openat2(root, name, os.O_RDONLY | os.O_NONBLOCK)
                with open(fd, "rb") as source:
                    if stat.S_ISREG(os.fstat(fd).st_mode):
                        with (directory / name).open("wb") as copy:
                            shutil.copyfileobj(source, copy)
    finally:
        os.close(root)
    return linked


def _is_plain(path: Path) -> bool:
    """Whether it is a regular file or nothing, in a directory of its own that hides nothing, or in none."""
    try:
        parent = path.parent.lstat().st_mode
    except FileNotFoundError:
        return True
    if not stat.S_ISDIR(parent) or _OPAQUE in os.listxattr(path.parent):
        return False
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return True
