"""A reader for untrusted tar streams: everything is bounded.

The format is POSIX.1-2001 pax ("ustar" with extended headers), with GNU's long names and base-256 numbers; see tar(5).
The standard library's tarfile is not used: it reads headers of any size into memory, some of its regular expressions
take quadratic time, and negative sizes make it loop.

Sparse files are those of GNU tar's format 1.0, and only on request: image builders do not write any.

Not here: global headers (skipped, as Docker and containerd do) and writing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import BinaryIO

from kata.errors import InvalidArgument, Unimplemented

BLOCK = 512
CHUNK = 256 * 1024
MAX_PATH = 4096
MAX_HEADER = 1024 * 1024  # an extended header; an attribute's value alone may have 64 KiB
MAX_HEADERS = 8  # extended headers in front of one entry
MAX_ID = 2**32 - 2  # 2**32 - 1 means "leave as it is" to chown(2)

_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_PAX_LENGTH = re.compile(rb"([1-9][0-9]{0,7}) ")
_PAX_NUMBER = re.compile(rb"[0-9]{1,18}")
_PAX_TIME = re.compile(rb"(-?)([0-9]{1,18})(?:\.([0-9]{0,18}))?")
XATTR = "SCHILY.xattr."
_XATTR = XATTR.encode()
_SPARSE = b"GNU.sparse."
_MAX_PIECES = 1 << 20


class EntryType(StrEnum):
    """Type of an entry; the values are for messages."""

    FILE = "file"
    HARD_LINK = "hard link"
    SYMLINK = "symbolic link"
    CHARACTER = "character device"
    BLOCK = "block device"
    DIRECTORY = "directory"
    FIFO = "fifo"


_TYPES = {
    b"0": EntryType.FILE,
    b"\0": EntryType.FILE,
    b"7": EntryType.FILE,
    b"1": EntryType.HARD_LINK,
    b"2": EntryType.SYMLINK,
    b"3": EntryType.CHARACTER,
    b"4": EntryType.BLOCK,
    b"5": EntryType.DIRECTORY,
    b"6": EntryType.FIFO,
}


def shown(name: str) -> str:
    """An untrusted name for an error message: quoted, escaped, of bounded length."""
    return repr(name if len(name) <= 100 else name[:97] + "...")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, with names exactly as written (bytes that are not UTF-8 as surrogates).

    Attributes:
        size: bytes of the file; 0 for all but files.
        offset: where in the stream the data starts.
        mtime: nanoseconds since the epoch.
        xattrs: extended attributes.
        pieces: offset and length of what the data that follow are of the file, in order; holes are between them.
    """

    name: str
    type: EntryType
    link: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    major: int
    minor: int
    offset: int
    xattrs: dict[str, bytes] = field(default_factory=dict)
    pieces: tuple[tuple[int, int], ...] = ()


class TarReader:
    """Iterate over the entries; between two of them, `chunks` returns the data of the last.

    Raises:
        InvalidArgument: while iterating: it is not a tar archive, or is truncated.
        Unimplemented: while iterating: a sparse file.
    """

    def __init__(self, stream: BinaryIO, label: str, *, seek: bool = False, sparse: bool = False) -> None:
        """Read `stream` from its start.

        Args:
            stream: positioned at the beginning of the archive.
            label: names it in errors.
            seek: skip unread data by seeking (a plain file) instead of reading it (a stream whose digest is computed).
            sparse: take sparse files.
        """
        self._stream = stream
        self._label = label
        self._seek = seek
        self._sparse = sparse
        self._position = 0
        self._data_left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            yield entry

    def chunks(self) -> Iterator[bytes]:
        """The data of the entry that was returned last."""
        while self._data_left:
            chunk = self._read(min(self._data_left, CHUNK))
            self._data_left -= len(chunk)
            yield chunk

    def _next(self) -> Entry | None:
        extended: dict[bytes, bytes] = {}
        for _ in range(MAX_HEADERS):
            self._skip_data()
            header = self._stream.read(BLOCK)
            if not header or header == bytes(BLOCK):
                if extended:
                    raise self._wrong("ends after an extended header")
                return None
            self._position += len(header)
            if len(header) < BLOCK or not _checksum_holds(header):
                raise self._wrong(f"no tar header at byte {self._position - len(header)}")
            kind = header[156:157]
            if kind in (b"x", b"g", b"L", b"K"):
                content = self._metadata(_number(header[124:136], self))
                if kind == b"x":
                    extended |= self._pax(content)
                elif kind != b"g":
                    extended[b"path" if kind == b"L" else b"linkpath"] = content.partition(b"\0")[0]
                continue
            holes = any(key.startswith(_SPARSE) for key in extended)
            if kind == b"S" or (holes and not self._is_known_sparse(extended)):
                raise Unimplemented(f"{self._label}: sparse files in tar archives are not supported")
            if kind not in _TYPES:
                raise self._wrong(f"unknown entry type {kind!r}")
            return self._entry(header, _TYPES[kind], extended)
        raise self._wrong("too many extended headers in a row")

    def _entry(self, header: bytes, kind: EntryType, extended: dict[bytes, bytes]) -> Entry:
        def number(key: bytes, start: int, end: int, maximum: int) -> int:
            if key in extended:
                if not _PAX_NUMBER.fullmatch(extended[key]):
                    raise self._wrong(f"bad {key.decode()} in an extended header")
                value = int(extended[key])
            else:
                value = _number(header[start:end], self)
            if not 0 <= value <= maximum:
                raise self._wrong(f"{key.decode()} {value} is out of range")
            return value

        name = header[:100].partition(b"\0")[0]
        if header[257:263] == b"ustar\0" and header[345] != 0:
            name = header[345:500].partition(b"\0")[0] + b"/" + name
        name = extended.get(_SPARSE + b"name", extended.get(b"path", name))
        if kind is EntryType.FILE and name.endswith(b"/"):
            kind = EntryType.DIRECTORY  # how the oldest format writes one
        size = number(b"size", 124, 136, 2**62)
        # Only files have data; in other headers old writers left the size of what they point to.
        size = size if kind is EntryType.FILE else 0
        self._data_left, self._padding = size, -size % BLOCK
        offset = self._position
        pieces: tuple[tuple[int, int], ...] = ((0, size),) if size else ()
        if kind is EntryType.FILE and _SPARSE + b"realsize" in extended:
            size = number(_SPARSE + b"realsize", 124, 136, 2**62)
            pieces = self._pieces(size)
        mtime = self._time(extended[b"mtime"]) if b"mtime" in extended else _number(header[136:148], self) * 10**9
        device = kind in (EntryType.CHARACTER, EntryType.BLOCK)
        return Entry(
            name=self._path(name),
            type=kind,
            link=self._path(extended.get(b"linkpath", header[157:257].partition(b"\0")[0])),
            mode=_number(header[100:108], self) & 0o7777,
            uid=number(b"uid", 108, 116, MAX_ID),
            gid=number(b"gid", 116, 124, MAX_ID),
            size=size,
            mtime=max(-(2**31) * 10**9, min(mtime, 2**34 * 10**9)),  # what file systems can store
            major=number(b"major", 329, 337, 4095) if device else 0,
            minor=number(b"minor", 337, 345, 2**20 - 1) if device else 0,
            offset=offset,
            xattrs={
                os.fsdecode(key.removeprefix(_XATTR)): value
                for key, value in extended.items()
                if key.startswith(_XATTR)
            },
            pieces=pieces,
        )

    def _is_known_sparse(self, extended: dict[bytes, bytes]) -> bool:
        versions = extended.get(_SPARSE + b"major"), extended.get(_SPARSE + b"minor")
        return self._sparse and versions == (b"1", b"0") and _SPARSE + b"realsize" in extended

    def _pieces(self, size: int) -> tuple[tuple[int, int], ...]:
        """The table in front of a sparse file's data: lines with their number, then offset and length of each.

        Source: GNU tar's manual, "Storing Sparse Files".
        """
        lines: list[bytes] = []
        rest, wanted = b"", 1
        while len(lines) < wanted:
            if self._data_left < BLOCK:
                raise self._wrong("the table of a sparse file is cut off")
            self._data_left -= BLOCK
            *more, rest = (rest + self._read(BLOCK)).split(b"\n")
            lines += more
            if len(rest) > BLOCK or (lines and not _PAX_NUMBER.fullmatch(lines[0])):
                raise self._wrong("bad table of a sparse file")
            if lines and (wanted := 1 + 2 * int(lines[0])) > 2 * _MAX_PIECES:
                raise self._wrong(f"a sparse file in more than {_MAX_PIECES} pieces")
        if not all(map(_PAX_NUMBER.fullmatch, lines[1:wanted])):
            raise self._wrong("bad table of a sparse file")
        numbers = [int(line) for line in lines[1:wanted]]
        found = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        ends = [0, *(offset + length for offset, length in found)]
        in_order = all(offset >= end for (offset, _), end in zip(found, ends, strict=False))
        if not in_order or ends[-1] > size or sum(numbers[1::2]) != self._data_left:
            raise self._wrong("a sparse file's table contradicts its data")
        return found

    def _pax(self, content: bytes) -> dict[bytes, bytes]:
        """The records of an extended header: lines "LENGTH KEY=VALUE", LENGTH in decimal and of the whole line."""
        records = {}
        start = 0
        while start < len(content):
            length = _PAX_LENGTH.match(content, start)
            if not length:
                raise self._wrong("bad extended header")
            end = start + int(length[1])
            key, separator, value = content[length.end() : end - 1].partition(b"=")
            if end > len(content) or content[end - 1 : end] != b"\n" or not separator or not key:
                raise self._wrong("bad extended header")
            records[key] = value
            start = end
        return records

    def _time(self, text: bytes) -> int:
        match = _PAX_TIME.fullmatch(text)
        if not match:
            raise self._wrong("bad mtime in an extended header")
        value = int(match[2]) * 10**9 + int((match[3] or b"").ljust(9, b"0")[:9])
        return -value if match[1] else value

    def _path(self, raw: bytes) -> str:
        if b"\0" in raw or len(raw) > MAX_PATH:
            raise self._wrong(f"path with a NUL byte or longer than {MAX_PATH} bytes")
        return os.fsdecode(raw)

    def _metadata(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise self._wrong(f"extended header of {size} bytes")
        content = self._read(size)
        self._padding = -size % BLOCK
        return content

    def _skip_data(self) -> None:
        left = self._data_left + self._padding
        self._data_left = self._padding = 0
        if self._seek:
            self._stream.seek(left, os.SEEK_CUR)
            self._position += left
            return
        while left:
            left -= len(self._read(min(left, CHUNK)))

    def _read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._position += len(content)
        if len(content) < size:
            raise self._wrong(f"cut off at byte {self._position}")
        return content

    def _wrong(self, what: str) -> InvalidArgument:
        return InvalidArgument(f"{self._label}: broken tar: {what}")

    def bad_number(self) -> InvalidArgument:
        """The error for a numeric field that is neither octal nor base 256, with the archive's label."""
        return self._wrong("bad number in a header")


def _number(raw: bytes, reader: TarReader) -> int:
    """Octal digits, or GNU's base 256 if the first bit is set (two's complement)."""
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big") & ((1 << (8 * len(raw) - 1)) - 1)
        return value - (1 << (8 * len(raw) - 1)) if raw[0] & 0x40 else value
    match = _OCTAL.fullmatch(raw)
    if not match:
        raise reader.bad_number()
    return int(match[1] or b"0", 8)


def _checksum_holds(header: bytes) -> bool:
    match = _OCTAL.fullmatch(header[148:156])
    if not match or not match[1]:
        return False
    # The field counts as spaces. Some old writers summed signed bytes.
    rest = header[:148] + header[156:]
    unsigned = sum(rest) + 8 * 0x20
    return int(match[1], 8) in (unsigned, unsigned - 256 * sum(byte >= 0x80 for byte in rest))
