"""What is installed, as a mapping from paths to files: pure, and written once, into a package or an archive.

bin/                commands: they find lib/pykata beside them, wherever the whole was put
lib/pykata/         this package, and all others that it needs, for the Python of each host release
lib/pykata/images/  the guest image
share/              man pages, completion, licenses, examples
"""

from __future__ import annotations

import hashlib
import io
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kata.osbuilder.store import CURRENT, GuestImage

#: Below the prefix.
LIBRARY = "lib/pykata"
IMAGES = f"{LIBRARY}/images"

#: Of compression by xz: a fifth of the time that its default takes, for a tenth more bytes.
LEVEL = 1

_LAUNCHER = """\
#!/usr/bin/python3 -IS
import os.path
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))) + "/{library}")
try:
    from {module} import {function}
except (ImportError, SyntaxError) as error:
    sys.exit(f"{name}: {{error}}\\nhint: a part of this installation is missing; install it again")

{function}()
"""
#: Written by pip when it installs; nothing of them is true here.
_NOT_INSTALLED = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
#: Where wheels have what goes beside their packages.
_BESIDE = ("purelib", "platlib")


@dataclass(frozen=True)
class File:
    """A file.

    Attributes:
        content: of it, or the path that has it.
        mode: permissions.
    """

    content: bytes | Path
    mode: int = 0o644

    def read(self) -> bytes:
        """The content."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


@dataclass(frozen=True)
class Link:
    """A symbolic link.

    Attributes:
        target: relative.
    """

    target: str


Tree = dict[str, File | Link]


def under(prefix: str, tree: Mapping[str, File | Link]) -> Tree:
    """The same tree in a directory."""
    return {f"{prefix}/{path}": entry for path, entry in tree.items()}


def commands(scripts: Mapping[str, str]) -> Tree:
    """The commands.

    Args:
        scripts: as in pyproject.toml: `module:function` by name.
    """
    tree: Tree = {}
    for name, where in scripts.items():
        module, _, function = where.partition(":")
        text = _LAUNCHER.format(name=name, library=LIBRARY, module=module, function=function)
        tree[f"bin/{name}"] = File(text.encode(), 0o755)
    return tree


def wheels(paths: Iterable[Path]) -> Tree:
    """The content of wheels, in one directory; those for other Pythons differ in compiled modules, whose names say so.

    Raises:
        ValueError: two wheels have different files of one name, or one has a part that is not understood.
    """
    tree: Tree = {}
    for path in sorted(paths, key=lambda each: each.name):
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                name = _installed_name(item.filename)
                if item.is_dir() or name is None:
                    continue
                file = File(archive.read(item), 0o644)
                there = tree.setdefault(f"{LIBRARY}/{name}", file)
                # What a wheel says of itself names its Python; the first one's stays.
                if there != file and ".dist-info/" not in name:
                    raise ValueError(f"{path.name} has another {name} than a wheel before it")
    return tree


def _installed_name(name: str) -> str | None:
    """Where a file of a wheel goes (PEP 427); None: nowhere."""
    first, _, rest = name.partition("/")
    if first.endswith(".data"):
        kind, _, rest = rest.partition("/")
        if kind in _BESIDE:
            return rest
        if kind in ("scripts", "data", "headers"):
            return None
        raise ValueError(f"{name} is in a part of the wheel that is not known")
    if first.endswith(".dist-info") and rest in _NOT_INSTALLED:
        return None
    return name


def image(found: GuestImage) -> Tree:
    """The guest image, which is the current one."""
    tree: Tree = {f"{IMAGES}/{CURRENT}": Link(found.version)}
    for name in ("manifest.json", *found.manifest["files"]):
        path = found.directory / name
        mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
        tree[f"{IMAGES}/{found.version}/{name}"] = File(path, mode)
    return tree


def write(tree: Mapping[str, File | Link], directory: Path) -> None:
    """Write a tree into a directory. Raises OSError."""
    for name, entry in sorted(tree.items()):
        path = directory / name
        _make_parents(path.parent, directory)
        if isinstance(entry, Link):
            path.symlink_to(entry.target)
        else:
            path.write_bytes(entry.read())
            path.chmod(entry.mode)


def _make_parents(path: Path, top: Path) -> None:
    if path != top and not path.is_dir():
        _make_parents(path.parent, top)
        path.mkdir()
        path.chmod(0o755)


def write_archive(tree: Mapping[str, File | Link], path: Path, date: int) -> None:
    """Write a tree as .tar.xz, the same bytes each time.

    Args:
        tree: of relative paths.
        path: of the archive.
        date: of all files, in seconds since 1970.

    Raises:
        OSError: it cannot be written.
    """
    with lzma.open(path, "wb", preset=LEVEL) as compressed:
        _write_members(tree, compressed, date)


def plain_archive(tree: Mapping[str, File | Link], date: int) -> bytes:
    """A tree as .tar, the same bytes each time; see `write_archive`. Raises OSError."""
    plain = io.BytesIO()
    _write_members(tree, plain, date)
    return plain.getvalue()


def _write_members(tree: Mapping[str, File | Link], out: BinaryIO | lzma.LZMAFile, date: int) -> None:
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        made: set[str] = set()
        for name, entry in sorted(tree.items()):
            parents = [str(parent) for parent in reversed(Path(name).parents) if str(parent) != "."]
            for parent in parents:
                if parent not in made:
                    made.add(parent)
                    archive.addfile(_member(parent, tarfile.DIRTYPE, 0o755, date))
            if isinstance(entry, Link):
                member = _member(name, tarfile.SYMTYPE, 0o777, date)
                member.linkname = entry.target
                archive.addfile(member)
            else:
                content = entry.read()
                member = _member(name, tarfile.REGTYPE, entry.mode, date)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def _member(name: str, kind: bytes, mode: int, date: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = kind, mode, date
    member.uname = member.gname = "root"
    return member


def digests(tree: Mapping[str, File | Link], kind: str) -> str:
    """A list of all files as md5sum(1) and sha256sum(1) print and read it.

    Args:
        tree: whose files they are.
        kind: "md5", "sha256".
    """
    files = ((name, entry) for name, entry in sorted(tree.items()) if isinstance(entry, File))
    return "".join(f"{hashlib.new(kind, entry.read()).hexdigest()}  {name}\n" for name, entry in files)


def listed(tree: Mapping[str, File | Link]) -> Tree:
    """The library's list of its own files, by which `kata setup` knows whether all are there."""
    prefix = f"{LIBRARY}/"
    files = {name.removeprefix(prefix): entry for name, entry in tree.items() if name.startswith(prefix)}
    return {f"{LIBRARY}/SHA256SUMS": File(digests(files, "sha256").encode())}
