"""dm-verity over a root image: a tree of hashes behind its data, whose root the kernel is told.

There is no superblock of dm-verity's between them, so that each byte of the file is covered: data by the tree, the tree
by the root hash, which is beside the image and in its manifest.

References: veritysetup(8); Documentation/admin-guide/device-mapper/verity.rst of the Linux kernel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kata.architecture import HOST, Architecture
from kata.command import run
from kata.errors import Internal
from kata.osbuilder.host_programs import libraries_of
from kata.osbuilder.rootfs import unpack_part

TOOL = "veritysetup"
#: What the initrd runs, and the package that has it.
PROGRAM, PACKAGE = "usr/sbin/dmsetup", "dmsetup"
#: What the initrd loads besides the file system.
MODULES = ("dm-mod", "dm-verity")
#: Of the file beside the image.
SUFFIX = ".verity"
_BLOCK = 4096
_TOOL_TIMEOUT_S = 300.0
_ROOT_HASH = re.compile(r"^Root hash:\s+([0-9a-f]{64})\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sealed:
    """What the kernel has to know of an image.

    Attributes:
        root_hash: SHA-256 in hexadecimal digits.
        salt: of all hashes, in hexadecimal digits.
        blocks: of data, of 4096 bytes each; the tree follows them.
    """

    root_hash: str
    salt: str
    blocks: int

    @property
    def text(self) -> str:
        """One line, as Kata's `kernel_verity_params` has it."""
        return (
            f"root_hash={self.root_hash},salt={self.salt},data_blocks={self.blocks},"
            f"data_block_size={_BLOCK},hash_block_size={_BLOCK}"
        )


def seal(image: Path, salt: str) -> Sealed:
    """Put the tree behind a file system, which is filled up to a whole block before.

    Args:
        image: the file, which grows by about a 128th.
        salt: hexadecimal digits.

    Raises:
        Internal: veritysetup fails, or says nothing that is understood.
        DeadlineExceeded, OSError: as `kata.command.run`.
    """
    blocks = -(-image.stat().st_size // _BLOCK)
    os.truncate(image, blocks * _BLOCK)
    sizes = [f"--data-blocks={blocks}", f"--data-block-size={_BLOCK}", f"--hash-block-size={_BLOCK}"]
    options = ["--no-superblock", f"--hash-offset={blocks * _BLOCK}", "--hash=sha256", f"--salt={salt}", *sizes]
    said = run([TOOL, "format", *options, str(image), str(image)], timeout=_TOOL_TIMEOUT_S)
    found = _ROOT_HASH.search(said)
    if found is None:
        raise Internal(f"{TOOL} printed no root hash")
    return Sealed(found[1], salt, blocks)


def programs(
    debs: Sequence[Path], directory: Path, architecture: Architecture = HOST, emulator: Path | None = None
) -> dict[str, bytes]:
    """What makes the device in the initrd, with the libraries that it loads: path to content.

    Args:
        debs: PACKAGE and what it depends on.
        directory: for temporary files; it is made.
        architecture: of the guest.
        emulator: runs programs of another architecture than the host's.

    Raises:
        Internal: a library is missing.
        DeadlineExceeded, OSError: as `kata.osbuilder.commands.pipe`.
    """
    directory.mkdir()
    for deb in debs:
        unpack_part(deb, directory, "./usr")
    libraries = directory / "usr/lib" / architecture.libraries
    loader = libraries / Path(architecture.loader).name
    names = libraries_of(loader, libraries, directory / PROGRAM, emulator)
    found = {f"lib/{libraries.name}/{name}": (libraries / name).read_bytes() for name in names}
    found["bin/dmsetup"] = (directory / PROGRAM).read_bytes()
    found[architecture.loader.lstrip("/")] = loader.read_bytes()
    return found
