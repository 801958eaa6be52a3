"""A root in each of its forms: an image, with dm-verity or without, or an initrd."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from kata.osbuilder import formats, initrd, modules, verity
from kata.osbuilder.recipe import INITRD, Form


def shaping_tools(form: Form) -> list[str]:
    """The host's tools whose version shapes the bytes of an image."""
    file_system = formats.FILE_SYSTEMS.get(form.format)
    return [*([file_system.tool] if file_system else []), *([verity.TOOL] if form.verity else [])]


def root_name(form: Form) -> str:
    """The name of its file beside the kernel."""
    return "initrd" if form.format == INITRD else f"root.{form.format}"


def modules_of_initrd(form: Form) -> tuple[str, ...]:
    """The kernel modules that mount a root of this form, in the order in which they are loaded; none without a disk."""
    if form.format == INITRD:
        return ()
    return modules.of_initrd([*formats.FILE_SYSTEMS[form.format].modules, *(verity.MODULES if form.verity else ())])


def write_root(root: Path, target: Path, form: Form, date: int, uuid: str) -> None:
    """Write a root as an image, with what dm-verity needs beside it, or as an initrd.

    Args:
        root: the directory.
        target: the file.
        form: which of them.
        date: of all files, in seconds since 1970.
        uuid: of the file system.

    Raises:
        Internal, DeadlineExceeded, OSError: as `kata.command.run`.
    """
    if form.format == INITRD:
        target.write_bytes(initrd.build_alone(root))
        return
    formats.FILE_SYSTEMS[form.format].write(root, target, form, date, uuid)
    if form.verity:
        sealed = verity.seal(target, salt=UUID(uuid).hex)
        target.with_name(f"{target.name}{verity.SUFFIX}").write_text(f"{sealed.text}\n")
