"""The user of an image: `user[:group]` looked up in the image's own /etc/passwd and /etc/group.

The rules are Docker's, which containerd shares: the first entry that matches as name or number counts, a number needs
no entry, a user without a group gets the groups that list it, an explicit group has no additional ones.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kata.archive.tar import shown
from kata.errors import InvalidArgument, NotFound
from kata.linux.openat2 import openat2

_MAX_FILE = 10 * 1024 * 1024
_MAX_ID = 2**31 - 1


class User(NamedTuple):
    """Ids for the process; `additional_gids` holds `gid` too.

    The kernel lets a file's group permissions override those of others; a process that lacks its own gid among the
    additional ones could drop out of its group and gain what the group is denied.
    """

    uid: int
    gid: int
    additional_gids: tuple[int, ...]


def resolve_user(rootfs: Path, spec: str) -> User:
    """The ids for `spec`: "", "name", "uid", "name:group", "uid:gid" or a mixture; "" is root.

    Raises:
        NotFound: the rootfs cannot be opened.
        InvalidArgument: there is no such user or group, or a number is out of range.
    """
    try:
        root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"cannot open rootfs {rootfs}: {(error.strerror or str(error)).lower()}") from error
    try:
        user, colon, group = spec.partition(":")
        name, uid, gid = _user(root, user or "0", spec)
        if group:
            gid = _group(root, group, spec)
            return User(uid, gid, (gid,))
        if colon:
            raise InvalidArgument(f"user {shown(spec)}: the group after ':' is missing")
        others = (
            number
            for fields in _lines(root, "etc/group", 4)
            if name is not None and name in fields[3].split(",") and (number := _id(fields[2])) not in (None, gid)
        )
        return User(uid, gid, (gid, *dict.fromkeys(number for number in others if number is not None)))
    finally:
        os.close(root)


def _user(root: int, user: str, spec: str) -> tuple[str | None, int, int]:
    """Name (if the image has one), uid and gid.

    Raises:
        InvalidArgument: the user is neither in the image's /etc/passwd nor a number.
    """
    number = _id(user)
    for fields in _lines(root, "etc/passwd", 4):
        uid, gid = _id(fields[2]), _id(fields[3])
        if uid is not None and gid is not None and (fields[0] == user or uid == number):
            return fields[0], uid, gid
    if number is None:
        raise InvalidArgument(
            f"user {shown(spec)}: {shown(user)} is neither in the image's /etc/passwd nor a number up to {_MAX_ID}"
        )
    return None, number, 0


def _group(root: int, group: str, spec: str) -> int:
    number = _id(group)
    for fields in _lines(root, "etc/group", 3):
        gid = _id(fields[2])
        if gid is not None and (fields[0] == group or gid == number):
            return gid
    if number is None:
        raise InvalidArgument(
            f"user {shown(spec)}: {shown(group)} is neither in the image's /etc/group nor a number up to {_MAX_ID}"
        )
    return number


def _id(text: str) -> int | None:
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) > _MAX_ID:
        return None
    return int(text)


def _lines(root: int, path: str, least: int) -> Iterator[list[str]]:
    """The entries of a colon-separated file with at least `least` fields; nothing if there is no such file."""
    try:
        fd = openat2(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return
    with open(fd, "rb") as file:
        content = file.read(_MAX_FILE)
    for line in content.decode(errors="surrogateescape").split("\n"):
        fields = line.strip().split(":")
        if len(fields) >= least and not line.startswith("#"):
            yield fields
