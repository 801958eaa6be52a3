"""The libraries that a program maps, as its dynamic loader finds them, and the modules that QEMU loads by itself.

Asking the loader takes some 30 ms for QEMU, so the answer is kept until program or libraries change: after each change
of these ldconfig(8) writes its cache anew.

References: ld.so(8), --list; elf(5) on PT_INTERP; QEMU's docs/devel/modules.rst.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kata.errors import FailedPrecondition, NotFound
from kata.linux import atomic_file
from kata.runtime.ledger.journal import STATE_ROOT, make_directory

LOADER_CACHE = "/etc/ld.so.cache"
#: Beside the libraries: the module that translates the guest's code.
_MODULES, _EMULATOR = "qemu", "accel-tcg-*.so"
#: Seconds for the loader's answer.
_TIMEOUT_S = 20.0
#: A line of it: "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)", or a path and an address for the loader itself.
_LINE = re.compile(r"(?:.* => )?(/.*) \(0x[0-9a-f]+\)")
#: Of an ELF file for 64-bit machines: its first bytes, and the type of the program header that names the loader.
_MAGIC, _INTERPRETER = b"\x7fELF\x02", 3
_MAX_PATH = 4096


def libraries(program: Path, root: str = STATE_ROOT) -> tuple[str, ...]:
    """The paths of a program's loader, libraries and modules; none of one that is linked statically.

    Args:
        program: an executable.
        root: the host's state directory, where the answer is kept.

    Raises:
        NotFound: there is no such program, or one of its libraries is missing.
        FailedPrecondition: the loader does not answer.
    """
    try:
        key = json.dumps([_identity(str(program)), _identity(LOADER_CACHE)])
    except OSError as error:
        raise NotFound(f"{error.filename}: {error.strerror}") from error
    cache = Path(root, f"libraries-{hashlib.sha256(os.fsencode(program)).hexdigest()[:16]}.json")
    try:
        kept = json.loads(cache.read_bytes())
        if kept["key"] == key:
            return tuple(kept["libraries"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    loader = loader_of(program)
    found = with_modules((loader, *parse(program, _ask(loader, program)))) if loader else ()
    try:
        make_directory(root)
        atomic_file.write(cache, json.dumps({"key": key, "libraries": found}))
    except OSError:
        pass  # the next start asks again
    return found


def loader_of(program: Path) -> str:
    """The dynamic loader that an executable names; "" if it is linked statically.

    Raises:
        FailedPrecondition: it is no executable for 64-bit machines, but a script for example.
        OSError: it cannot be read.
    """
    with program.open("rb") as file:
        header = file.read(64)
        if len(header) < 64 or not header.startswith(_MAGIC):
            raise FailedPrecondition(
                f"{program} is not an ELF file of 64 bits: what it needs in an empty root is unknown",
                hint='name the program itself, or set jail_uid_range to ""',
            )
        (table,), (size, count) = struct.unpack_from("=Q", header, 32), struct.unpack_from("=HH", header, 54)
        for index in range(count):
            file.seek(table + index * size)
            entry = file.read(56)
            if len(entry) == 56 and struct.unpack_from("=I", entry)[0] == _INTERPRETER:
                position, length = struct.unpack_from("=Q16xQ", entry, 8)
                file.seek(position)
                return os.fsdecode(file.read(min(length, _MAX_PATH)).rstrip(b"\0"))
    return ""


def parse(program: Path, answer: str) -> tuple[str, ...]:
    """Read what the loader says.

    Raises:
        NotFound: it does not find a library.
    """
    lines = [line.strip() for line in answer.splitlines()]
    for line in lines:
        if line.endswith("=> not found"):
            raise NotFound(f"{program}: library {line.split()[0]} is not installed")
    return tuple(dict.fromkeys(match[1] for line in lines if (match := _LINE.fullmatch(line))))


def with_modules(found: Sequence[str]) -> tuple[str, ...]:
    """Add QEMU's modules that are beside the libraries."""
    places = dict.fromkeys(os.path.realpath(os.path.dirname(path)) for path in found)
    modules = (str(module) for place in places for module in sorted(Path(place, _MODULES).glob(_EMULATOR)))
    return (*dict.fromkeys((*found, *modules)),)


def _identity(path: str) -> list[int | str]:
    info = os.stat(path)
    return [path, info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns]


def _ask(loader: str, program: Path) -> str:
    """Have the program's loader list what it loads.

    Raises:
        FailedPrecondition: it fails, or takes too long.
    """
    try:
        done = subprocess.run(
            [loader, "--list", program],
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailedPrecondition(f"cannot find the libraries of {program}: {error}") from error
    return done.stdout
