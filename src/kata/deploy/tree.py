"""The tree of the archive, put into the node's prefix as a whole, exchanged for another one, and removed.

    /opt/.kata.new   being copied, or what it was exchanged for, being removed
    /opt/kata        whole, always

Beside the prefix, so that both are in one file system; what is there from before a kill is removed first.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path
from typing import NoReturn

from kata.cli.installation import LIST, damaged
from kata.errors import FailedPrecondition, KataError, ResourceExhausted
from kata.linux.libc import LIBC, check
from kata.linux.syncfs import syncfs
from kata.osbuilder import store

#: Below a prefix: what says that a tree is ours, and whether it is all there.
LISTING = Path("lib/pykata") / LIST.name
_IMAGES = Path("lib/pykata/images")
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
#: For what a file system needs besides the files.
_ROOM = 1.05


def staging(prefix: Path) -> Path:
    """Where a tree is before it is in its place, and what is removed afterwards."""
    return prefix.with_name(f".{prefix.name}.new")


def is_installed(source: Path, prefix: Path) -> bool:
    """Whether a prefix has the same tree as the source, and all of it."""
    try:
        if (source / LISTING).read_bytes() != (prefix / LISTING).read_bytes() or damaged(prefix / LISTING):
            return False
        for name in os.listdir(source / _IMAGES):
            if (source / _IMAGES / name).is_symlink():
                if os.readlink(source / _IMAGES / name) != os.readlink(prefix / _IMAGES / name):
                    return False
                store.check(store.find(prefix / _IMAGES, name))
    except (OSError, KataError):
        return False
    return True


def stage(source: Path, prefix: Path) -> Path:
    """Copy the source beside the prefix; returns where it is.

    Raises:
        ResourceExhausted: there is no room.
        FailedPrecondition: nothing can be written there.
    """
    staged = staging(prefix)
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        _remove(staged)
        _check_room(source, prefix.parent)
        shutil.copytree(source, staged, symlinks=True)
        fd = os.open(staged, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Before it is in its place: after a power failure there would be empty files.
            syncfs(fd)
        finally:
            os.close(fd)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(staged, ignore_errors=True)
        _fail(prefix, error)
    return staged


def put(staged: Path, prefix: Path) -> None:
    """Put what was staged in its place, in one step; what was there is removed.

    Raises:
        FailedPrecondition: it cannot be.
    """
    try:
        if os.path.lexists(prefix):
            arguments = (_AT_FDCWD, os.fsencode(staged), _AT_FDCWD, os.fsencode(prefix), _RENAME_EXCHANGE)
            check(LIBC.renameat2(*arguments[:4], ctypes.c_uint(arguments[4])), "renameat2", str(prefix))
        else:
            staged.rename(prefix)
        _remove(staged)
    except OSError as error:
        _fail(prefix, error)


def remove(prefix: Path) -> None:
    """Remove a tree: first from its place, so that no half of one is ever there.

    Raises:
        FailedPrecondition: it cannot be.
    """
    try:
        _remove(staging(prefix))
        if os.path.lexists(prefix):
            prefix.rename(staging(prefix))
            _remove(staging(prefix))
    except OSError as error:
        _fail(prefix, error)


def _remove(path: Path) -> None:
    if os.path.lexists(path):
        shutil.rmtree(path)


def _check_room(source: Path, directory: Path) -> None:
    """See that the source fits.

    Raises:
        OSError: ENOSPC.
    """
    needed = 0
    for where, _, names in os.walk(source):
        needed += sum(os.lstat(os.path.join(where, name)).st_blocks * 512 for name in names)
    room = os.statvfs(directory)
    if room.f_bavail * room.f_frsize < needed * _ROOM:
        free, whole = (number // 1_000_000 for number in (room.f_bavail * room.f_frsize, needed))
        raise OSError(errno.ENOSPC, f"{free} MB are free, {whole} MB are needed")


def _fail(prefix: Path, error: OSError) -> NoReturn:
    """Say that a tree cannot be written.

    Raises:
        ResourceExhausted: the disk is full.
        FailedPrecondition: of any other reason.
    """
    if isinstance(error, shutil.Error):
        # Of many files; each says (source, target, why).
        words = str(error.args[0][0][2]) if error.args and error.args[0] else str(error)
        number = errno.ENOSPC if os.strerror(errno.ENOSPC) in words else errno.EIO
    else:
        words, number = error.strerror or str(error), error.errno or errno.EIO
    said = f"cannot write {prefix}: {words[:1].lower()}{words[1:]}"
    if number in (errno.ENOSPC, errno.EDQUOT):
        raise ResourceExhausted(said, hint="make room on the node, or choose another prefix") from None
    hint = "choose a prefix that can be written, by the chart's value prefix" if number == errno.EROFS else None
    raise FailedPrecondition(said, hint=hint) from None
