"""The guest's kernel: the uncompressed one out of a distribution's bzImage, or one that was built here.

An emulator decompresses a bzImage at a twentieth of the host's speed, which is seconds; an ELF kernel with a PVH note
is entered directly. Sources: Documentation/arch/x86/boot.rst (setup header), Documentation of Xen's PVH entry point
(XEN_ELFNOTE_PHYS32_ENTRY), both in the Linux kernel.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from kata import zstd
from kata.architecture import Architecture
from kata.errors import InvalidArgument

#: Of a kernel's directory: the license of its sources.
COPYRIGHT = "copyright"
#: What kbuild tells about what is built in, from which depmod makes modprobe's index.
MODULE_LISTS = ("modules.builtin", "modules.builtin.modinfo")

#: Bytes of the decompressed kernel; Debian's has 60 MB.
_MAX_VMLINUX = 512 << 20

_SETUP_SECTS = 0x1F1
_HEADER_MAGIC = 0x202
_VERSION = 0x206
_PAYLOAD = 0x248

_PT_NOTE = 4
_XEN_ELFNOTE_PHYS32_ENTRY = 18


@dataclass(frozen=True, slots=True)
class CustomKernel:
    """A kernel that is not a distribution's: all of it built in (`kata.kernel_build.store` has them).

    Attributes:
        directory: has `vmlinux`, stripped and with a PVH entry, COPYRIGHT, and MODULE_LISTS.
        version: names its content.
        release: as `uname -r` says it.
        date: of its sources, in seconds since 1970.
    """

    directory: Path
    version: str
    release: str
    date: int

    @property
    def vmlinux(self) -> Path:
        """The kernel."""
        return self.directory / "vmlinux"

    @property
    def copyright(self) -> str:
        """The license of its sources. Raises OSError."""
        return (self.directory / COPYRIGHT).read_text(errors="replace")


#: Where the header of an uncompressed image has its magic number (Documentation/arch/arm64/booting.rst).
_IMAGE_MAGIC = 56


def uncompressed(content: bytes, architecture: Architecture) -> bytes:
    """The kernel that QEMU enters, of the one in Debian's package.

    Raises:
        InvalidArgument: it is not for that architecture, or is compressed in another way.
    """
    magic = architecture.kernel_magic
    if not magic:
        return extract_vmlinux(content)
    if content[_IMAGE_MAGIC : _IMAGE_MAGIC + len(magic)] != magic:
        raise InvalidArgument(f"the kernel is not an uncompressed image for {architecture.name}")
    return content


def extract_vmlinux(bzimage: bytes) -> bytes:
    """The ELF kernel inside a bzImage whose payload is compressed with zstd.

    Raises:
        InvalidArgument: not a bzImage, another compression, a damaged payload, or an ELF file without a PVH entry.
    """
    vmlinux = _decompress(_payload(bzimage))
    if not has_pvh_entry(vmlinux):
        raise InvalidArgument("the kernel has no PVH entry point (CONFIG_PVH)")
    return vmlinux


def has_pvh_entry(elf: bytes) -> bool:
    """Whether an x86-64 ELF file has a note with its PVH entry point (XEN_ELFNOTE_PHYS32_ENTRY).

    Raises:
        InvalidArgument: it is not an x86-64 ELF file.
    """
    if elf[:6] != b"\x7fELF\x02\x01" or len(elf) < 64 or elf[18:20] != b"\x3e\x00":
        raise InvalidArgument("the kernel is not an x86-64 ELF file")
    table, entry_size, entries = struct.unpack_from("<Q", elf, 32)[0], *struct.unpack_from("<HH", elf, 54)
    for start in range(table, table + entries * entry_size, entry_size or 1):
        if start + 40 > len(elf):
            raise InvalidArgument("the kernel's program headers are outside of the file")
        kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", elf, start)
        if kind == _PT_NOTE and _has_pvh_note(elf[offset : offset + size]):
            return True
    return False


def _has_pvh_note(notes: bytes) -> bool:
    position = 0
    while position + 12 <= len(notes):
        name_size, data_size, kind = struct.unpack_from("<III", notes, position)
        name = notes[position + 12 : position + 12 + name_size]
        if name == b"Xen\0" and kind == _XEN_ELFNOTE_PHYS32_ENTRY:
            return True
        position += 12 + (name_size + 3 & ~3) + (data_size + 3 & ~3)
    return False


def _payload(bzimage: bytes) -> bytes:
    if len(bzimage) < _PAYLOAD + 8 or bzimage[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        raise InvalidArgument("the kernel is not a bzImage")
    (protocol,) = struct.unpack_from("<H", bzimage, _VERSION)
    if protocol < 0x208:
        raise InvalidArgument(f"the kernel's boot protocol {protocol >> 8}.{protocol & 255} is older than 2.8")
    offset, length = struct.unpack_from("<II", bzimage, _PAYLOAD)
    # The real-mode code is one boot sector and `setup_sects` more; 0 means 4 (Documentation/arch/x86/boot.rst).
    start = ((bzimage[_SETUP_SECTS] or 4) + 1) * 512 + offset
    payload = bzimage[start : start + length]
    if len(payload) != length:
        raise InvalidArgument("the kernel image is truncated")
    return payload


def _decompress(payload: bytes) -> bytes:
    if not payload.startswith(b"\x28\xb5\x2f\xfd"):
        raise InvalidArgument(f"the kernel is not compressed with zstd (payload starts with {payload[:6].hex()})")
    # The kernel's build appends the size after the end of the frame.
    decompressor = zstd.ZstdDecompressor()
    try:
        vmlinux = decompressor.decompress(payload, _MAX_VMLINUX)
    except zstd.ZstdError as error:
        raise InvalidArgument(f"the kernel's payload is damaged: {error}") from None
    if not decompressor.eof:
        raise InvalidArgument("the kernel's payload is truncated or larger than 512 MiB")
    return vmlinux
