"""Which containerd runs `start`, and so which form of answer it reads.

containerd 1.x reads a bare address: 1.6 knows nothing else, and 1.7 refuses JSON that names version 3 of the Task
service. containerd 2 reads JSON, and takes a bare address for version 2. From 2.3 on it is known by the bootstrap
parameters on standard input. 2.0 to 2.2 say nothing at `start` that 1.7 does not say as well (MAX_SHIM_VERSION is 2 in
all of them), so what is looked at is the running program: Go writes the path of the main package into each, and a
module's second major version has "/v2" in it. A program that is not recognised gets the bare address, which all read.

Not the file that `-publish-binary` names: during an upgrade it is newer than the program that runs.

Sources: containerd, core/runtime/v2/shim.go (`parseStartResponse`), pkg/shim/util.go; Go, debug/buildinfo; elf(5).
"""

from __future__ import annotations

import os

_MAIN_PACKAGE = b"path\tgithub.com/containerd/containerd/v2/cmd/containerd\n"
_SECTION = b".go.buildinfo"
_ELF_64_LITTLE = b"\x7fELF\x02\x01"
#: Far above what programs have: 40 sections, 2 KiB of names, 1 KiB (with modules: 30) of build information.
_MAX_READ = 1 << 18
_MAX_OFFSET = 1 << 40


def is_containerd_2(pid: int) -> bool:
    """Whether a process runs containerd 2.

    Args:
        pid: 0: a process outside of this one's PID namespace, of which nothing is known.
    """
    try:
        fd = os.open(f"/proc/{pid}/exe", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _MAIN_PACKAGE in build_info(fd)
    except OSError:
        return False
    finally:
        os.close(fd)


def build_info(fd: int) -> bytes:
    """The section that Go fills with a program's build information; b"" if it has none. Raises OSError.

    Args:
        fd: of an executable file.
    """
    header = os.pread(fd, 64, 0)
    if len(header) < 64 or not header.startswith(_ELF_64_LITTLE):
        return b""
    size, number, names_index = (_int(header, at, 2) for at in (0x3A, 0x3C, 0x3E))
    table = _read(fd, _int(header, 0x28, 8), size * number)
    sections = [table[at : at + size] for at in range(0, len(table), size)] if size >= 64 else []
    if names_index >= len(sections):
        return b""
    names = _content(fd, sections[names_index])
    for section in sections:
        name = _int(section, 0, 4)
        if names.startswith(_SECTION + b"\0", name):
            return _content(fd, section)
    return b""


def _content(fd: int, section: bytes) -> bytes:
    return _read(fd, _int(section, 0x18, 8), _int(section, 0x20, 8))


def _read(fd: int, at: int, size: int) -> bytes:
    return os.pread(fd, min(size, _MAX_READ), at) if at < _MAX_OFFSET else b""


def _int(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")
