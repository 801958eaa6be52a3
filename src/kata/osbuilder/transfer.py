"""One file to carry an image to another host: its directory as a tar archive, compressed with zstd.

What is imported is nobody's to vouch for: it is unpacked beside the images, where no path leads out, compared with its
own manifest, and appears by one rename. That says that it is whole, not whom it comes from.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from kata import zstd
from kata.archive.extract import extract
from kata.archive.pack import Totals, pack
from kata.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from kata.linux.atomic_file import Replacement, sync_directory
from kata.osbuilder import store
from kata.osbuilder.store import GuestImage

_LEVEL = 6
#: Of an archive: more than any image has.
_MAX_ENTRIES = 1000
_MAX_SIZE = 32 << 30
#: Another import takes seconds, a build a minute.
_LOCK_TIMEOUT_S = 120.0


def export(image: GuestImage, path: Path) -> None:
    """Write an image to a file, once all of it is found to be as it was built.

    Raises:
        FailedPrecondition: the image is damaged.
        ResourceExhausted: the disk is full.
        OSError: the file cannot be written.
    """
    store.check(image)
    directory = os.open(image.directory.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with Replacement(path) as file:
            with zstd.ZstdFile(file, "wb", level=_LEVEL) as compressed:
                pack(cast(BinaryIO, compressed), directory, image.version, image.version)
            file.flush()
            os.fsync(file.fileno())
    finally:
        os.close(directory)


def import_(path: Path, root: Path, *, told: Callable[[Totals], object] = lambda _: None) -> GuestImage:
    """Read an image from a file that `export` has written; it does not become the current one.

    Args:
        path: of the file.
        root: directory of the images, which is made if it is not there.
        told: called with the totals so far, now and then.

    Raises:
        NotFound: there is no such file.
        InvalidArgument: it is no image, or a path in it leads elsewhere.
        FailedPrecondition: it is damaged, or was made by a newer kata.
        AlreadyExists: this host has an image of this version, and it differs.
        ResourceExhausted: the disk is full, or the archive is larger than any image.
        DeadlineExceeded: a build holds the lock.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise NotFound(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    with file:
        root.mkdir(parents=True, exist_ok=True)
        staging = root / f"{store.BUILDING}import"
        # A build removes what begins like this, so it has to wait.
        with store.lock(root, timeout=_LOCK_TIMEOUT_S):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(mode=0o700)
            try:
                version = _unpack(file, path, staging, told)
                return _publish(_checked(staging, version), root)
            finally:
                shutil.rmtree(staging, ignore_errors=True)


def _unpack(file: BinaryIO, path: Path, staging: Path, told: Callable[[Totals], object]) -> str:
    def bounded(totals: Totals) -> None:
        if totals.entries > _MAX_ENTRIES or totals.size > _MAX_SIZE:
            raise ResourceExhausted(f"{path} has more files, or larger ones, than any guest image")
        told(totals)

    directory = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with zstd.ZstdFile(file, "rb") as stream:
            extract(cast(BinaryIO, stream), directory, str(path), owner=(os.geteuid(), os.getegid()), told=bounded)
    except (zstd.ZstdError, EOFError) as error:
        raise InvalidArgument(f"{path} is not an exported guest image, or is damaged: {error}") from None
    finally:
        os.close(directory)
    names = os.listdir(staging)
    if len(names) != 1:
        raise InvalidArgument(f"{path} has {len(names)} files at its top, where the directory of one image should be")
    return names[0]


def _checked(staging: Path, version: str) -> GuestImage:
    """The image that was unpacked, compared with its manifest.

    Raises:
        InvalidArgument: it has something that its manifest does not name.
        FailedPrecondition: it is damaged, or was made by a newer kata.
    """
    image = store.find(staging, version)
    if image.manifest.get("version") != version:
        raise InvalidArgument(f"the archive's directory {version} is not that of its manifest's version")
    named = {store.MANIFEST, *image.manifest["files"]}
    for directory, directories, names in os.walk(image.directory):
        for name in (*directories, *names):
            path = Path(directory, name)
            below = str(path.relative_to(image.directory))
            mode = path.lstat().st_mode
            # Another file system entry than these would be followed from here on: a link among the directories, too.
            if not (stat.S_ISREG(mode) and below in named) and not stat.S_ISDIR(mode):
                raise InvalidArgument(f"the archive has {below!r}, which is not one of the image's files")
    try:
        store.check(image)
    except FailedPrecondition as error:
        raise FailedPrecondition(error.message, hint="export the image again, and carry it anew") from None
    return image


def _publish(image: GuestImage, root: Path) -> GuestImage:
    target = root / image.version
    if target.exists():
        there = store.find(root, image.version)
        if there.manifest["files"] != image.manifest["files"]:
            raise AlreadyExists(f"there is another guest image {image.version} in {root}")
        return there
    for path in image.directory.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o111 else 0o444)
    image.directory.chmod(0o755)
    store.sync_tree(image.directory)
    try:
        image.directory.rename(target)
    except OSError as error:
        raise FailedPrecondition(f"cannot make {target}: {(error.strerror or '').lower()}") from None
    sync_directory(root)
    return store.find(root, image.version)
