"""The file systems that a root image can have: how each is written, and what the initrd needs to mount it.

Plans are pure: a directory's size and a form in, a command line out. erofs and ext4 images are the same to the bit for
the same directory and the same version of the tools; xfs ones are not, since mkfs.xfs of Debian 12 and 13 takes the
time from the clock and numbers at random.

References: mkfs.erofs(1), mke2fs(8), mkfs.xfs(8).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kata.command import run
from kata.errors import InvalidArgument
from kata.osbuilder.host_programs import command
from kata.osbuilder.recipe import Form

_TOOL_TIMEOUT_S = 300.0
_MIB = 1 << 20
_BLOCK = 4096
#: ext4: bytes of a file system for each inode; the root has many small files.
_BYTES_PER_INODE = 8192
#: ext4: numbers of the root's inode, and of the first that is not reserved, which is lost+found's.
_EXT4_ROOT, _EXT4_FIRST = 2, 11
_TIMES = ("atime", "ctime", "mtime")
#: mkfs.xfs makes none that is smaller.
_MIN_XFS_MIB = 320


@dataclass(frozen=True, slots=True)
class FileSystem:
    """One of the file systems.

    Attributes:
        name: as mount(8) has it.
        tools: that write it, name to path in their package.
        packages: of the tools and of the libraries that they load, but for the C library.
        modules: that the initrd loads.
        write: (directory, image, form, date, uuid, directory of the tools or None for the host's) -> None.
    """

    name: str
    tools: Mapping[str, str]
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    write: Callable[[Path, Path, Form, int, str, Path | None], None]


def _erofs(root: Path, image: Path, form: Form, date: int, uuid: str, tools: Path | None) -> None:
    # mkfs.erofs 1.8 waits for ever when the disk is full.
    if shutil.disk_usage(image.parent).free < erofs_bytes(_used(root)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(image.parent))
    # No extended attributes, the small inode form: less to read, and nothing of the builder's file system leaks in.
    options = [f"-T{date}", f"-U{uuid}", "-x-1", "-Eforce-inode-compact", "--all-root", "--quiet"]
    run([*command("mkfs.erofs", tools), *options, str(image), str(root)], timeout=_TOOL_TIMEOUT_S)


def _ext4(root: Path, image: Path, form: Form, date: int, uuid: str, tools: Path | None) -> None:
    # No journal: nobody writes to it. mke2fs sorts what it copies and takes the time from the environment.
    extended = f"hash_seed={uuid},root_owner=0:0,nodiscard,lazy_itable_init=0"
    options = ["-q", "-F", "-b", str(_BLOCK), "-m", "0", "-i", str(_BYTES_PER_INODE), "-O", "^has_journal"]
    options += ["-U", uuid, "-L", form.label, "-E", extended, "-d", str(root)]
    size = f"{ext4_mib(_used(root), form.free_mib)}M"
    environment = {"E2FSPROGS_FAKE_TIME": str(date), "MKE2FS_CONFIG": "/dev/null"}
    run([*command("mkfs.ext4", tools), *options, str(image), size], timeout=_TOOL_TIMEOUT_S, env=environment)
    # What mke2fs copies has the times of this host, of which nobody can set that of an inode's last change.
    changes = image.with_name(f"{image.name}.debugfs")
    lines = [f"set_inode_field <{number}> {time} @{date}" for number in _inodes(root) for time in _TIMES]
    changes.write_text("\n".join(lines) + "\n")
    debugfs = [*command("debugfs", tools), "-w", "-f", str(changes), str(image)]
    run(debugfs, timeout=_TOOL_TIMEOUT_S, env=environment)
    changes.unlink()


def _xfs(root: Path, image: Path, form: Form, date: int, uuid: str, tools: Path | None) -> None:
    prototype = image.with_name(f"{image.name}.prototype")
    prototype.write_text("\n".join(xfs_prototype(root)) + "\n")
    size = max(_MIN_XFS_MIB, ext4_mib(_used(root), form.free_mib))
    options = ["-q", "-f", "-m", f"uuid={uuid}", "-L", form.label, "-p", str(prototype)]
    mkfs = [*command("mkfs.xfs", tools), *options, "-d", f"file,name={image},size={size}m"]
    run(mkfs, timeout=_TOOL_TIMEOUT_S)
    prototype.unlink()


# crc32c_generic: libcrc32c asks the crypto layer for "crc32c" when it starts; modprobe would know, insmod does not.
FILE_SYSTEMS = {
    "erofs": FileSystem(
        "erofs",
        {"mkfs.erofs": "usr/bin/mkfs.erofs"},
        (
            *("erofs-utils", "libdeflate0", "liblz4-1", "liblzma5", "libpcre2-8-0", "libselinux1"),
            *("libuuid1", "libxxhash0", "libzstd1", "zlib1g"),
        ),
        ("crc32c_generic", "erofs"),
        _erofs,
    ),
    "ext4": FileSystem(
        "ext4",
        {"mkfs.ext4": "usr/sbin/mkfs.ext4", "debugfs": "usr/sbin/debugfs"},
        ("e2fsprogs", "libblkid1", "libcom-err2", "libext2fs2t64", "libss2", "libuuid1"),
        ("crc32c_generic", "ext4"),
        _ext4,
    ),
    "xfs": FileSystem(
        "xfs",
        {"mkfs.xfs": "usr/sbin/mkfs.xfs"},
        ("xfsprogs", "libblkid1", "libinih1", "liburcu8t64", "libuuid1"),
        ("crc32c_generic", "xfs"),
        _xfs,
    ),
}


def erofs_bytes(used: int) -> int:
    """No erofs image is larger: what is used, and inodes of 32 bytes and large directories for each block at most.

    Args:
        used: bytes of all files in whole blocks.
    """
    return used + used // 32 + _MIB


def ext4_mib(used: int, free_mib: int) -> int:
    """The size of a file system in MiB: what is used, an inode and its share of tables for each file, and what is free.

    Args:
        used: bytes of all files in whole blocks.
        free_mib: wanted beside them.
    """
    tables = used * 256 // _BYTES_PER_INODE + used // 32
    return -(-(used + tables) // _MIB) + 4 + free_mib


def xfs_prototype(root: Path) -> Iterator[str]:
    """A directory as mkfs.xfs reads it, line by line.

    Raises:
        InvalidArgument: a name has a space in it, or begins with what the format means something by.
    """
    yield from ("/", "0 0", _mode(root.stat().st_mode))
    yield from _entries(root)
    yield "$"


def _entries(directory: Path) -> Iterator[str]:
    for path in sorted(directory.iterdir()):
        name, status = path.name, path.lstat()
        if any(character.isspace() for character in str(path)) or name.startswith(("$", ":")):
            raise InvalidArgument(f"{path}: mkfs.xfs does not take such a name", hint="use erofs or ext4")
        mode = _mode(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            yield f"{name} {mode}"
            yield from _entries(path)
            yield "$"
        elif stat.S_ISLNK(status.st_mode):
            yield f"{name} {mode} {os.readlink(path)}"
        elif stat.S_ISREG(status.st_mode):
            yield f"{name} {mode} {path}"


def _mode(mode: int) -> str:
    """Type, set-id bits, permissions and owner in the words of a prototype; the sticky bit has none."""
    kind = "d" if stat.S_ISDIR(mode) else "l" if stat.S_ISLNK(mode) else "-"
    set_ids = ("u" if mode & stat.S_ISUID else "-") + ("g" if mode & stat.S_ISGID else "-")
    return f"{kind}{set_ids}{mode & 0o777:03o} 0 0"


def _used(root: Path) -> int:
    """Bytes of all files, in whole blocks, one for each directory at least."""
    total = 0
    for directory, _, names in os.walk(root):
        total += _BLOCK
        total += sum(-(-os.lstat(os.path.join(directory, name)).st_size // _BLOCK) * _BLOCK for name in names)
    return total


def _inodes(root: Path) -> list[int]:
    """The numbers of all inodes that mke2fs makes for a directory: the root, lost+found, and one after the other."""
    found: set[int] = set()
    for directory, subdirectories, names in os.walk(root):
        found.update(os.lstat(os.path.join(directory, name)).st_ino for name in (*subdirectories, *names))
    return [_EXT4_ROOT, *range(_EXT4_FIRST, _EXT4_FIRST + 1 + len(found))]
