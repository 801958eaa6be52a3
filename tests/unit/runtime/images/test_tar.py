"""The tar parser: what it reads, and what it refuses without hanging or filling the memory."""

from __future__ import annotations

import contextlib
import io
import tarfile
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.archive.tar import Entry, EntryType, TarReader
from kata.errors import InvalidArgument, KataError, Unimplemented

from .builder import entry, layer


def header(**fields: bytes) -> bytearray:
    """A valid header for an empty file "a", with fields replaced and the checksum made right."""
    places = {"name": 0, "mode": 100, "uid": 108, "size": 124, "mtime": 136, "type": 156, "magic": 257, "prefix": 345}
    raw = bytearray(tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT))
    for key, value in fields.items():
        raw[places[key] : places[key] + len(value)] = value
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return raw


def extended(content: bytes, kind: bytes = b"x") -> bytes:
    return bytes(header(size=b"%011o\0" % len(content), type=kind)) + content + bytes(-len(content) % 512)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return b"%d %s=%s\n" % (length, key, value)


def read(content: bytes) -> list[tuple[Entry, bytes]]:
    reader = TarReader(io.BytesIO(content), "test")
    return [(item, b"".join(reader.chunks())) for item in reader]


def test_all_that_an_entry_has() -> None:
    pax = {"SCHILY.xattr.user.a": "b", "comment": "ignored"}
    content = layer(
        entry("f", b"data", mode=0o4755, uid=3_000_000, gid=7, mtime=1.25, pax_headers=pax),
        entry("c", type=tarfile.CHRTYPE, devmajor=10, devminor=200),
    )
    (file, data), (device, _) = read(content)
    assert (file.name, file.type, file.mode, file.uid, file.gid) == ("f", EntryType.FILE, 0o4755, 3_000_000, 7)
    assert (file.mtime, file.xattrs, data) == (1_250_000_000, {"user.a": b"b"}, b"data")
    assert (device.type, device.major, device.minor) == (EntryType.CHARACTER, 10, 200)


def test_attributes_are_bytes() -> None:
    value = bytes(range(256)) + b"\n1 x=y\n"
    ((item, _),) = read(extended(record(b"SCHILY.xattr.security.capability", value)) + header())
    assert item.xattrs == {"security.capability": value}


def test_data_that_nobody_reads_is_passed_over() -> None:
    content = layer(entry("a", b"1" * 70_000), entry("b", b"2" * 513), entry("c", b"3"))
    for seek in (False, True):
        assert [item.name for item in TarReader(io.BytesIO(content), "test", seek=seek)] == ["a", "b", "c"]


def test_offsets_point_to_the_data() -> None:
    content = layer(entry("x" * 150, b"one"), entry("b", b"two"))
    for item, data in read(content):
        assert content[item.offset : item.offset + item.size] == data


def test_old_directories_and_prefixes() -> None:
    assert read(bytes(header(name=b"d/")))[0][0].type is EntryType.DIRECTORY
    assert read(bytes(header(prefix=b"p/q")))[0][0].name == "p/q/a"


def test_negative_times_are_kept_and_absurd_ones_cut() -> None:
    assert read(bytes(header(mtime=b"\xff" * 11 + b"\xfe")))[0][0].mtime == -2 * 10**9
    assert read(extended(record(b"mtime", b"-0.5")) + header())[0][0].mtime == -(10**9) // 2
    assert read(bytes(header(mtime=b"\x80" + b"\x7f" * 11)))[0][0].mtime == 2**34 * 10**9


def test_a_global_header_changes_nothing() -> None:
    assert read(extended(record(b"path", b"evil"), b"g") + header())[0][0].name == "a"


@pytest.mark.parametrize(
    "content",
    [
        bytes(header(size=b"\xff" * 12)),  # -1 in base 256: the way back
        bytes(header(size=b"\xff" * 11 + b"\x00")),
        bytes(header(size=b"-0000000001\0")),
        bytes(header(size=b"0o000000001\0")),
        bytes(header(size=b"99999999999\0")),
        bytes(header(uid=b"\x80\0\0\1\0\0\0\0")),
        bytes(header(type=b"Z")),
        bytes(header(size=b"00000001000\0")),  # more data than there is
        bytes(header())[:300],
        bytes(header()).replace(b"ustar", b"USTAR"),  # the checksum no longer holds
        extended(b"") * 9 + bytes(header()),
        extended(record(b"path", b"x")),  # nothing follows
        extended(record(b"path", b"x")) + bytes(1024),
        extended(record(b"path", b"x" * 5000)) + bytes(header()),
        extended(record(b"path", b"a\0b")) + bytes(header()),
        extended(record(b"size", b"-512")) + bytes(header()),
        extended(record(b"size", b"9" * 5000)) + bytes(header()),
        extended(record(b"uid", b"4294967295")) + bytes(header()),
        extended(record(b"mtime", b"nan")) + bytes(header()),
        extended(b"9" * 4000) + bytes(header()),
        extended(b"5 a=b") + bytes(header()),
        extended(b"99 a=b\n") + bytes(header()),
        extended(b"1 a=b\n") + bytes(header()),
        extended(b"6 abc\n") + bytes(header()),
        extended(b"5 =b\n") + bytes(header()),
        bytes(header(type=b"x", size=b"77777777777\0")),
        bytes(header(type=b"L", size=b"\xff" * 12)),
    ],
)
def test_nonsense_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read(content)
    assert caught.value.message.startswith("test: broken tar: ")


@pytest.mark.parametrize(
    "content", [bytes(header(type=b"S")), extended(record(b"GNU.sparse.major", b"1")) + bytes(header())]
)
def test_sparse_files_are_named(content: bytes) -> None:
    with pytest.raises(Unimplemented, match="sparse"):
        read(content)


def test_a_header_that_claims_gigabytes_costs_no_memory_and_no_time() -> None:
    class Endless(io.RawIOBase):
        """The header, then zeros for ever."""

        def __init__(self) -> None:
            self.head = bytes(header(type=b"x", size=b"77777777777\0"))

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            head, self.head = self.head[:size], self.head[size:]
            return head + bytes(size - len(head))

    tracemalloc.start()
    begin = time.monotonic()
    try:
        with pytest.raises(InvalidArgument):
            list(TarReader(Endless(), "test"))  # type: ignore[arg-type]
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()
    assert time.monotonic() - begin < 60


def test_a_long_run_of_digits_takes_linear_time() -> None:
    begin = time.monotonic()
    with pytest.raises(InvalidArgument):
        read(extended(b"1" * 1_000_000) + bytes(header()))
    assert time.monotonic() - begin < 60


# What is suppressed is what is expected; any other exception fails.


@given(st.binary(max_size=2048))
def test_noise(noise: bytes) -> None:
    with contextlib.suppress(KataError):
        read(noise)


@given(st.integers(0, 511), st.binary(min_size=1, max_size=24))
def test_damaged_headers_with_a_right_checksum(offset: int, noise: bytes) -> None:
    raw = header()
    raw[offset : offset + len(noise)] = noise[: 512 - offset]
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    with contextlib.suppress(KataError):
        for item, _ in read(bytes(raw) + bytes(512)):
            assert "\0" not in item.name + item.link
            assert item.size >= 0
            assert 0 <= item.uid < 2**32 - 1


@given(st.binary(max_size=600))
def test_damaged_extended_headers(noise: bytes) -> None:
    with contextlib.suppress(KataError):
        read(extended(noise) + bytes(header()))
