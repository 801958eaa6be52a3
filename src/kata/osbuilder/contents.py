"""What files a root has, in the format of mtree(5): each with type, mode, size and digest, or where it points.

    ./usr/bin/sh type=link mode=0777 link=busybox
    ./usr/bin/busybox type=file mode=0755 size=2062744 sha256digest=…

So two images are compared without mounting them, and whatever file system they have.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kata.errors import InvalidArgument

#: Below the image's directory.
NAME = "contents.mtree"
_HEADER = "#mtree\n"
_TYPES = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo"}
#: What vis(3) writes as octal digits, because it would end a word or a line, or begin a comment.
_SPECIAL = re.compile(rb"[^!-~]|[#\\=]")
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Item:
    """One file.

    Attributes:
        path: below the root, without a "/" at its start.
        type: "file", "dir", "link" or "fifo".
        mode: permission bits.
        size: of a file, in bytes.
        digest: of a file, SHA-256 in hexadecimal digits.
        link: where a symbolic link points.
    """

    path: str
    type: str
    mode: int
    size: int = 0
    digest: str = ""
    link: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two lists.

    Attributes:
        added, removed: what only the second, or the first, has.
        changed: pairs of what has another content, type, mode or target.
    """

    added: tuple[Item, ...]
    removed: tuple[Item, ...]
    changed: tuple[tuple[Item, Item], ...]


def collect(root: Path) -> list[Item]:
    """All files below a directory, sorted by path; devices and sockets are left out, as they are from an image.

    Raises:
        OSError: one cannot be read.
    """
    found = []
    for directory, subdirectories, names in os.walk(root):
        for name in (*subdirectories, *names):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            kind = _TYPES.get(stat.S_IFMT(status.st_mode))
            if kind is None:
                continue
            below, mode = os.path.relpath(path, root), stat.S_IMODE(status.st_mode)
            if kind == "file":
                with open(path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                found.append(Item(below, kind, mode, status.st_size, digest))
            else:
                found.append(Item(below, kind, mode, link=os.readlink(path) if kind == "link" else ""))
    return sorted(found, key=lambda item: os.fsencode(item.path))


def dump(items: Iterable[Item]) -> str:
    """The text for a list."""
    return _HEADER + "".join(f"{_line(item)}\n" for item in items)


def parse(text: str) -> list[Item]:
    """The list in a text that `dump` has made.

    Raises:
        InvalidArgument: it is not understood.
    """
    if not text.startswith(_HEADER):
        raise InvalidArgument("the list of files does not begin with #mtree")
    found = []
    for line in text.splitlines()[1:]:
        path, *words = line.split(" ")
        try:
            values = dict(word.split("=", 1) for word in words)
            item = Item(
                _unescape(path).removeprefix("./"),
                values["type"],
                int(values["mode"], 8),
                int(values.get("size", 0)),
                values.get("sha256digest", ""),
                _unescape(values.get("link", "")),
            )
        except (ValueError, KeyError):
            raise InvalidArgument(f"the list of files has a line that is not understood: {line[:80]!r}") from None
        found.append(item)
    return found


def compare(before: Iterable[Item], after: Iterable[Item]) -> Difference:
    """What differs between two lists."""
    old, new = ({item.path: item for item in items} for items in (before, after))
    return Difference(
        tuple(item for path, item in new.items() if path not in old),
        tuple(item for path, item in old.items() if path not in new),
        tuple((old[path], item) for path, item in new.items() if path in old and old[path] != item),
    )


def _line(item: Item) -> str:
    line = f"./{_escape(item.path)} type={item.type} mode={item.mode:04o}"
    if item.type == "file":
        line += f" size={item.size} sha256digest={item.digest}"
    return line + (f" link={_escape(item.link)}" if item.link else "")


def _escape(text: str) -> str:
    return _SPECIAL.sub(lambda found: b"\\%03o" % ord(found[0]), os.fsencode(text)).decode()


def _unescape(text: str) -> str:
    return os.fsdecode(_OCTAL.sub(lambda found: bytes([int(found[1], 8) & 255]), text.encode()))
