"""Layers that a container engine has unpacked, as disks: directories in the form that overlayfs expects.

Such a directory belongs to the engine, which never changes it. So it is known by a digest over the names and numbers of
all that is in it, among them the time of each last change, which no program can set: a directory that has changed
nonetheless becomes another disk.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from kata.errors import FailedPrecondition
from kata.runtime.images.layer_cache import LayerCache, LayerDisk


def directory_disk(directory: str, cache: LayerCache) -> LayerDisk:
    """The disk of a directory, which is made if the cache does not have it. Close it after use.

    Args:
        directory: its path.
        cache: the layer cache.

    Raises:
        FailedPrecondition: the directory cannot be read.
        KataError: as `LayerCache.obtain`.
    """
    try:
        key = f"directory-{_digest(directory)}"
    except OSError as error:
        raise FailedPrecondition(f"cannot read layer {directory}: {error.strerror}") from error
    return cache.obtain(key, lambda _: Path(directory))


def _digest(directory: str) -> str:
    digest = hashlib.sha256(_facts(os.stat(directory, follow_symlinks=False)))
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        with os.scandir(os.path.join(directory, inner)) as entries:
            for entry in sorted(entries, key=lambda entry: os.fsencode(entry.name)):
                name = os.path.join(inner, entry.name)
                info = entry.stat(follow_symlinks=False)
                digest.update(os.fsencode(name) + b"\0" + _facts(info))
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name)
    return digest.hexdigest()


def _facts(info: os.stat_result) -> bytes:
    numbers = (info.st_ino, info.st_mode, info.st_uid, info.st_gid, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
    return repr(numbers).encode()
