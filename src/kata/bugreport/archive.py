"""The archive of a report: a compressed tar with one directory, whole or not there at all."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kata.bugreport.collect import Collected
from kata.bugreport.secrets import REMOVED
from kata.errors import AlreadyExists, InvalidArgument, ResourceExhausted
from kata.linux.atomic_file import Replacement
from kata.zstd import ZstdFile

#: The file that says what was collected, and what was not.
CONTENTS = "CONTENTS.txt"
_SUFFIXES = (".tar.gz", ".tar.zst")


def write(path: Path, collected: Iterable[Collected], told: Callable[[Collected], None]) -> None:
    """Write the archive, readable by this user only. Parts are collected while it is written, one at a time.

    Args:
        path: of the archive; its end says how it is compressed.
        collected: the parts.
        told: called with each one.

    Raises:
        InvalidArgument: the path ends with neither .tar.gz nor .tar.zst.
        AlreadyExists: there is a file.
        ResourceExhausted: it cannot be written, on a full disk for instance; then nothing is left of it.
    """
    suffix = next((suffix for suffix in _SUFFIXES if path.name.endswith(suffix)), None)
    if suffix is None:
        raise InvalidArgument(f"the name of the archive {path.name!a} ends with neither {' nor '.join(_SUFFIXES)}")
    if os.path.lexists(path):
        raise AlreadyExists(f"{path} exists", hint="name another file with --output")
    directory = path.name.removesuffix(suffix)
    try:
        with (
            Replacement(path, mode=0o600) as file,
            _compressed(file, suffix) as stream,
            tarfile.open(fileobj=stream, mode="w|") as archive,
        ):
            rows = []
            for one in collected:
                told(one)
                rows.append(_row(one))
                if one.content is not None:
                    _add(archive, f"{directory}/{one.part.name}", one.content)
            _add(archive, f"{directory}/{CONTENTS}", "".join(_contents(rows)).encode(errors="replace"))
    except OSError as error:
        raise ResourceExhausted(
            f"cannot write {path}: {(error.strerror or str(error)).lower()}", hint="name another file with --output"
        ) from error


@contextmanager
def _compressed(file: BinaryIO, suffix: str) -> Iterator[gzip.GzipFile | ZstdFile]:
    stream = gzip.GzipFile(fileobj=file, mode="wb") if suffix == ".tar.gz" else ZstdFile(file, "wb")
    with stream:
        yield stream


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o600
    member.mtime = time.time()
    archive.addfile(member, io.BytesIO(content))


def _row(one: Collected) -> str:
    size = "-" if one.content is None else f"{len(one.content)}"
    removed = f"{one.removed} secrets removed" if one.removed else ""
    notes = "; ".join(filter(None, [removed, one.problem]))
    return f"{size:>9}  {one.part.name:<50} {one.part.what}{f' ({notes})' if notes else ''}\n"


def _contents(rows: Iterable[str]) -> Iterator[str]:
    yield f"Bytes, file, what it is; - is what could not be had. {REMOVED} stands for what may be a secret.\n\n"
    yield from rows
