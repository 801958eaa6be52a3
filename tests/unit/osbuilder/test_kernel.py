from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata import zstd
from kata.architecture import AMD64, ARM64
from kata.errors import InvalidArgument
from kata.osbuilder.kernel import extract_vmlinux, has_pvh_entry, uncompressed


def note(name: bytes, kind: int, data: bytes = b"\0" * 8) -> bytes:
    name += b"\0"
    return struct.pack("<III", len(name), len(data), kind) + name.ljust(len(name) + 3 & ~3, b"\0") + data


def elf(notes: bytes) -> bytes:
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 0, 0, 0)
    table = load + struct.pack("<IIQQQQQQ", 4, 4, 176, 0, 0, len(notes), len(notes), 4)
    return header + table + notes


def bzimage(payload: bytes, *, protocol: int = 0x20F, setup_sectors: int = 4) -> bytes:
    offset = 0x100
    image = bytearray(((setup_sectors or 4) + 1) * 512 + offset)
    image[0x1F1] = setup_sectors
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, protocol)
    struct.pack_into("<II", image, 0x248, offset, len(payload))
    return bytes(image) + payload + b"trailing bytes"


PVH_KERNEL = elf(note(b"GNU", 3) + note(b"Linux", 257, b"abc".ljust(4, b"\0")) + note(b"Xen", 18))


@pytest.mark.parametrize("setup_sectors", [0, 4, 27])
def test_the_kernel_inside_comes_out(setup_sectors: int) -> None:
    image = bzimage(zstd.compress(PVH_KERNEL) + b"\0\1\2\3", setup_sectors=setup_sectors)
    assert extract_vmlinux(image) == PVH_KERNEL


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", "not a bzImage"),
        (b"\x7fELF" + bytes(4096), "not a bzImage"),
        (bzimage(zstd.compress(PVH_KERNEL), protocol=0x207), "older than 2.8"),
        (bzimage(zstd.compress(PVH_KERNEL))[:-40], "truncated"),
        (bzimage(b"\xfd7zXZ\0" + bytes(64)), "not compressed with zstd"),
        (bzimage(zstd.compress(PVH_KERNEL)[:-20]), "truncated"),
        (bzimage(b"\x28\xb5\x2f\xfd" + b"\xff" * 64), "damaged"),
        (bzimage(zstd.compress(b"#!/bin/sh\n")), "not an x86-64 ELF file"),
        (bzimage(zstd.compress(elf(note(b"Xen", 17)))), "no PVH entry"),
        (bzimage(zstd.compress(elf(note(b"GNU", 18)))), "no PVH entry"),
    ],
)
def test_what_is_not_a_usable_kernel_is_refused(image: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        extract_vmlinux(image)


def test_program_headers_outside_of_the_file_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="outside"):
        has_pvh_entry(PVH_KERNEL[:100])


@given(st.integers(0, len(PVH_KERNEL) - 1), st.binary(min_size=1, max_size=16))
def test_damaged_headers_never_do_worse_than_an_error(position: int, bytes_: bytes) -> None:
    damaged = PVH_KERNEL[:position] + bytes_ + PVH_KERNEL[position + len(bytes_) :]
    try:
        has_pvh_entry(damaged)
    except InvalidArgument:
        pass


def test_an_uncompressed_image_is_taken_as_it_is() -> None:
    image = b"MZ".ljust(56, b"\0") + b"ARM\x64" + bytes(100)
    assert uncompressed(image, ARM64) == image
    for wrong in (b"", image[:58], bzimage(zstd.compress(PVH_KERNEL)), b"\x1f\x8b" + bytes(200)):
        with pytest.raises(InvalidArgument, match="not an uncompressed image for arm64"):
            uncompressed(wrong, ARM64)
    assert uncompressed(bzimage(zstd.compress(PVH_KERNEL)), AMD64) == PVH_KERNEL
