"""Write files as a tar stream: POSIX.1-2001 pax, holes as GNU tar's sparse format 1.0 has them.

The files may change meanwhile, and may be somebody's who wants to be harmful: paths are resolved beneath a root,
nothing but regular files is opened, and no symbolic link is followed below the path that was asked for.

Not here: device nodes and sockets, which are left out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from kata.archive.tar import BLOCK, CHUNK, MAX_HEADER, MAX_PATH, XATTR
from kata.errors import FailedPrecondition, InvalidArgument, NotFound
from kata.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

#: Directories in each other; there is a descriptor for each.
MAX_DEPTH = 256
#: Pieces of a file between holes; what comes after the last one is written with its zeros.
_MAX_PIECES = 16384
#: Bytes of holes that are worth an entry of their own kind.
_MIN_HOLES = 64 << 10
#: The most that octal digits in a header can say: of a size, and of an id.
_MAX_SIZE = 8**11 - 1
_MAX_ID = 8**7 - 1
_BLOCKS_END = bytes(2 * BLOCK)
#: Paths of one kind in `Totals`.
_MAX_TOLD = 20
#: Bytes of a file's attributes: less than a header may have.
_MAX_ATTRIBUTES = MAX_HEADER // 2
_BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS


@dataclass
class Totals:
    """What has been packed or extracted.

    Attributes:
        entries: files, directories and links.
        size: bytes of the files, with holes.
        skipped: paths of devices and sockets that were left out, the first few.
        plain: paths of files of which an extended attribute was left out, the first few.
    """

    entries: int = 0
    size: int = 0
    skipped: list[str] | None = None
    plain: list[str] | None = None

    def skip(self, path: str) -> None:
        """Something was left out."""
        self.skipped = self.skipped or []
        if len(self.skipped) < _MAX_TOLD:
            self.skipped.append(path)

    def leave_plain(self, path: str) -> None:
        """An extended attribute was left out."""
        self.plain = self.plain or []
        if len(self.plain) < _MAX_TOLD and path not in self.plain:
            self.plain.append(path)


def pack(
    out: BinaryIO,
    root: int,
    path: str,
    name: str,
    *,
    follow: bool = False,
    attributes: bool = False,
    told: Callable[[Totals], object] = lambda _: None,
) -> Totals:
    """Write a file, or a directory with all that is in it.

    Args:
        out: where to.
        root: a directory; no path leads out of it.
        path: in the root.
        name: of the file in the archive; "" for the content of a directory.
        follow: whether a symbolic link at `path` itself is followed.
        attributes: whether files and directories have the extended attributes that `is_portable` names.
        told: called with the totals so far, now and then.

    Raises:
        NotFound: there is no such file.
        InvalidArgument: a name is too long, or directories are too deep.
        FailedPrecondition: a file cannot be read.
        OSError: it cannot be written.
    """
    packer = _Packer(out, told, attributes=attributes)
    above, base = open_parent(root, path) if not follow else (openat2(root, path, os.O_PATH), "")
    try:
        packer.add(above, base, name)
    except _Unreadable as unreadable:
        raise FailedPrecondition(f"cannot read {unreadable.path or path}: {unreadable.reason}") from unreadable
    finally:
        os.close(above)
    out.write(_BLOCKS_END)
    out.flush()
    return packer.totals


def is_portable(attribute: str) -> bool:
    """Whether an extended attribute means the same on another host: users' own, POSIX ACLs and capabilities."""
    return attribute.startswith("user.") or attribute in (
        "system.posix_acl_access",
        "system.posix_acl_default",
        "security.capability",
    )


def open_parent(root: int, path: str) -> tuple[int, str]:
    """The directory of a path and the last name in it, which is not followed; "" for the directory itself.

    Raises:
        NotFound: a directory on the way does not exist.
        FailedPrecondition: one on the way is none, or cannot be entered.
    """
    above, _, base = path.rstrip("/").rpartition("/")
    if base in ("", ".", ".."):
        above, base = path, ""
    try:
        return openat2(root, above or ".", os.O_PATH | os.O_DIRECTORY), base
    except FileNotFoundError:
        raise NotFound(f"there is no {path}") from None
    except OSError as error:
        raise FailedPrecondition(f"{path}: {(error.strerror or '').lower()}") from error


class _Unreadable(Exception):
    def __init__(self, path: str, error: OSError) -> None:
        super().__init__(path)
        self.path = path
        self.reason = (error.strerror or str(error)).lower()


class _Packer:
    def __init__(self, out: BinaryIO, told: Callable[[Totals], object], *, attributes: bool) -> None:
        self.totals = Totals()
        self._out = out
        self._told = told
        self._attributes = attributes
        self._links: dict[tuple[int, int], str] = {}

    def add(self, directory: int, base: str, name: str, depth: int = 0) -> None:
        """Add what `base` is in the directory, which is the directory itself for "".

        Raises:
            NotFound: there is no such file.
            InvalidArgument: directories are too deep.
            _Unreadable: it cannot be read.
        """
        try:
            status = os.stat(base, dir_fd=directory, follow_symlinks=False) if base else os.fstat(directory)
        except FileNotFoundError:
            if depth:
                return  # it has been removed since its directory was read
            raise NotFound(f"there is no {base}") from None
        except OSError as error:
            raise _Unreadable(name, error) from error
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            if depth >= MAX_DEPTH:
                raise InvalidArgument(f"{name[:100]}… is more than {MAX_DEPTH} directories deep")
            self._add_directory(directory, base, name, status, depth)
        elif kind == stat.S_IFREG:
            self._add_file(directory, base, name, status)
        elif kind == stat.S_IFLNK:
            self._write_header(b"2", name, status, link=os.readlink(base, dir_fd=directory))
        elif kind == stat.S_IFIFO:
            self._write_header(b"6", name, status)
        else:
            self.totals.skip(name)

    def _add_directory(self, directory: int, base: str, name: str, status: os.stat_result, depth: int) -> None:
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY
            fd = openat2(directory, base or ".", flags, resolve=_BENEATH)
        except OSError as error:
            raise _Unreadable(name, error) from error
        try:
            if name:
                self._write_header(b"5", f"{name}/", status, xattrs=self._xattrs(fd, name))
            for child in sorted(os.listdir(fd)):
                self.add(fd, child, f"{name}/{child}" if name else child, depth + 1)
        finally:
            os.close(fd)

    def _add_file(self, directory: int, base: str, name: str, status: os.stat_result) -> None:
        key = status.st_dev, status.st_ino
        if status.st_nlink > 1:
            if key in self._links:
                self._write_header(b"1", name, status, link=self._links[key])
                return
            self._links[key] = name
        try:
            fd = os.open(
                base or f"/proc/self/fd/{directory}",
                os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_NOFOLLOW if base else 0),
                dir_fd=directory if base else None,
            )
        except OSError as error:
            raise _Unreadable(name, error) from error
        with open(fd, "rb", buffering=0) as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                self.totals.skip(name)  # it has been replaced meanwhile
                return
            xattrs = self._xattrs(fd, name)
            pieces = _pieces(fd, status.st_size)
            stored = sum(size for _, size in pieces)
            if status.st_size - stored >= _MIN_HOLES:
                # GNU tar takes the end of the last piece for the end of the file.
                pieces.append((status.st_size, 0))
                table = "".join(f"{number}\n" for number in (len(pieces), *(one for piece in pieces for one in piece)))
                head = table.encode() + bytes(-len(table) % BLOCK)
                self._write_header(b"0", name, status, size=len(head) + stored, sparse=True, xattrs=xattrs)
                self._out.write(head)
            else:
                pieces, stored = [(0, status.st_size)], status.st_size
                self._write_header(b"0", name, status, size=stored, xattrs=xattrs)
            for offset, size in pieces:
                self._copy(file, offset, size)
            self._out.write(bytes(-stored % BLOCK))

    def _xattrs(self, fd: int, name: str) -> dict[str, bytes]:
        """The extended attributes of an open file that are packed."""
        found: dict[str, bytes] = {}
        size = 0
        for attribute in _list_xattrs(fd) if self._attributes else ():
            try:
                value = os.getxattr(fd, attribute)
            except OSError:
                value = None
            size += len(attribute) + len(value or b"")
            if value is None or "=" in attribute or size > _MAX_ATTRIBUTES:
                self.totals.leave_plain(name)
                continue
            found[attribute] = value
        return found

    def _copy(self, file: BinaryIO, offset: int, size: int) -> None:
        """Copy a piece; what is missing of it, because the file has been cut meanwhile, is zeros."""
        while size:
            data = os.pread(file.fileno(), min(size, CHUNK), offset)
            data = data or bytes(min(size, CHUNK))
            self._out.write(data)
            offset, size = offset + len(data), size - len(data)
            self.totals.size += len(data)
            self._told(self.totals)

    def _write_header(
        self,
        kind: bytes,
        name: str,
        status: os.stat_result,
        *,
        size: int = 0,
        link: str = "",
        sparse: bool = False,
        xattrs: Mapping[str, bytes] | None = None,
    ) -> None:
        if len(os.fsencode(name)) > MAX_PATH:
            raise InvalidArgument(f"path {name[:100]}… has more than {MAX_PATH} bytes")
        seconds, nanos = divmod(status.st_mtime_ns, 10**9)
        records: dict[str, bytes] = {}
        if nanos or not 0 <= seconds <= _MAX_SIZE:
            sign, (whole, rest) = ("-" if status.st_mtime_ns < 0 else ""), divmod(abs(status.st_mtime_ns), 10**9)
            records["mtime"] = f"{sign}{whole}.{rest:09}".encode()
        for key, value, most in (
            ("uid", status.st_uid, _MAX_ID),
            ("gid", status.st_gid, _MAX_ID),
            ("size", size, _MAX_SIZE),
        ):
            if value > most:
                records[key] = str(value).encode()
        if sparse:
            records |= {
                "GNU.sparse.major": b"1",
                "GNU.sparse.minor": b"0",
                "GNU.sparse.name": os.fsencode(name),
                "GNU.sparse.realsize": str(status.st_size).encode(),
            }
        for key, text in (("path", name), ("linkpath", link)):
            raw = os.fsencode(text)
            if len(raw) > 100 or not raw.isascii():
                records[key] = raw
        records |= {f"{XATTR}{attribute}": value for attribute, value in (xattrs or {}).items()}
        if records:
            content = b"".join(_record(key, value) for key, value in records.items())
            self._out.write(_header(b"x", b"@PaxHeader", 0o644, 0, 0, len(content), 0, b""))
            self._out.write(content + bytes(-len(content) % BLOCK))
        header = _header(
            kind,
            os.fsencode(name)[:100],
            stat.S_IMODE(status.st_mode),
            min(status.st_uid, _MAX_ID),
            min(status.st_gid, _MAX_ID),
            min(size, _MAX_SIZE),
            min(max(seconds, 0), _MAX_SIZE),
            os.fsencode(link)[:100],
        )
        self._out.write(header)
        self.totals.entries += 1
        self._told(self.totals)


def _pieces(fd: int, size: int) -> list[tuple[int, int]]:
    """Offset and length of what a file has between its holes (lseek(2)); a file system without holes has one piece."""
    found: list[tuple[int, int]] = []
    position = 0
    while position < size and len(found) < _MAX_PIECES:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
            position = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return found  # a hole until its end
            break
        if start >= size:
            return found
        found.append((start, position - start))
    if position < size:
        found.append((position, size - position))
    return found


def _list_xattrs(fd: int) -> list[str]:
    try:
        return [attribute for attribute in os.listxattr(fd) if is_portable(attribute)]
    except OSError:
        return []  # the file system has none


def _record(key: str, value: bytes) -> bytes:
    """A record of an extended header: its length, which counts its own digits, key and value."""
    rest = b" " + os.fsencode(key) + b"=" + value + b"\n"
    length = len(rest)
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def _header(kind: bytes, name: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, link: bytes) -> bytes:
    fields = (
        name.ljust(100, b"\0")
        + b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, uid, gid, size, mtime)
        + b" " * 8
        + kind
        + link.ljust(100, b"\0")
        + b"ustar\00000"
    ).ljust(BLOCK, b"\0")
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]
