"""A root in each of its forms: an image, with dm-verity or without, or an initrd."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from kata.osbuilder import formats, initrd, modules, partitions, verity
from kata.osbuilder.recipe import INITRD, Form


def tools(form: Form) -> Mapping[str, str]:
    """The programs that write a root in this form and whose version shapes it: name to path in their package."""
    return {} if form.format == INITRD else formats.FILE_SYSTEMS[form.format].tools


def packages_of_tools(form: Form) -> tuple[str, ...]:
    """The packages that have them, and the libraries that they load."""
    return () if form.format == INITRD else formats.FILE_SYSTEMS[form.format].packages


def tools_of_host(form: Form) -> list[str]:
    """The host's programs that are needed in any case. A tree of hashes is the same, whatever version has made it."""
    return [verity.TOOL] if form.verity else []


def root_name(form: Form) -> str:
    """The name of its file beside the kernel."""
    return "initrd" if form.format == INITRD else f"root.{form.format}"


def modules_of_initrd(form: Form) -> tuple[str, ...]:
    """The kernel modules that mount a root of this form, in the order in which they are loaded; none without a disk."""
    if form.format == INITRD:
        return ()
    return modules.of_initrd([*formats.FILE_SYSTEMS[form.format].modules, *(verity.MODULES if form.verity else ())])


def disk(form: Form) -> str:
    """Where the guest finds the file system: on its first disk, or in a partition of that."""
    return "/dev/vda1" if form.partitioned else "/dev/vda"


def write_root(root: Path, target: Path, form: Form, date: int, uuid: str, tools: Path | None) -> None:
    """Write a root as an image, with what dm-verity needs beside it, or as an initrd.

    Args:
        root: the directory.
        target: the file.
        form: which of them.
        date: of all files, in seconds since 1970.
        uuid: of the file system.
        tools: directory of the programs that write it; None for the host's own.

    Raises:
        Internal, DeadlineExceeded, OSError: as `kata.command.run`.
    """
    if form.format == INITRD:
        target.write_bytes(initrd.build_alone(root))
        return
    formats.FILE_SYSTEMS[form.format].write(root, target, form, date, uuid, tools)
    if form.partitioned:
        _put_into_a_partition(target, UUID(uuid).bytes[:4])
    if form.verity:
        sealed = verity.seal(target, salt=UUID(uuid).hex)
        target.with_name(f"{target.name}{verity.SUFFIX}").write_text(f"{sealed.text}\n")


def _put_into_a_partition(image: Path, identity: bytes) -> None:
    content = image.with_name(f"{image.name}.content")
    image.rename(content)
    size = content.stat().st_size
    with content.open("rb") as source, image.open("wb") as target:
        target.write(partitions.head(size, identity))
        shutil.copyfileobj(source, target)
        os.truncate(target.fileno(), partitions.size(size))
    content.unlink()
