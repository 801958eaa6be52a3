"""The program that copies files between the host and a container (`kata.protocols.files`), a process of its own.

    stat ROOT PATH
    get  ROOT PATH NAME follow|"" [attributes]      tar to standard output
    put  ROOT DIRECTORY UID:GID|-      tar from standard input

ROOT is the container's root directory. No path leads out of it, whatever the container does meanwhile.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Sequence

from kata.archive.extract import extract
from kata.archive.pack import Totals, pack
from kata.archive.tar import CHUNK
from kata.errors import FailedPrecondition, InvalidArgument, KataError, NotFound
from kata.linux.openat2 import openat2
from kata.protocols import files

_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}


def main(arguments: Sequence[str]) -> int:
    """Run it, and return the exit status; the last line on standard error is a `kata.protocols.files.Report`."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody reads, or needs an explanation
    report = files.Report()
    try:
        totals = _run(*arguments)
        report = files.Report(skipped=tuple(totals.skipped or ()), plain=tuple(totals.plain or ()))
    except KataError as error:
        report = files.Report(error)
    except OSError as error:
        report = files.Report(FailedPrecondition((error.strerror or str(error)).lower()))
    os.write(2, report.to_json())
    return 1 if report.error else 0


def _run(verb: str, root_path: str, path: str, *rest: str) -> Totals:
    root = _open_root(root_path)
    try:
        if verb == files.STAT:
            os.write(1, files.Found(look(root, path), look(root, path, follow=True)).to_json())
            return Totals()
        if verb == files.GET:
            name, follow, *more = rest
            with open(1, "wb", closefd=False) as out:
                return pack(out, root, path, name, follow=bool(follow), attributes=bool(more))
        uid, _, gid = rest[0].partition(":")
        owner = None if rest[0] == files.KEEP_OWNERS else (int(uid), int(gid))
        into = _open_directory(root, path)
        try:
            totals = extract(sys.stdin.buffer, into, "archive", owner=owner)
            while sys.stdin.buffer.read(CHUNK):
                pass  # what follows the archive's end
            return totals
        finally:
            os.close(into)
    finally:
        os.close(root)


def look(root: int, path: str, *, follow: bool = False) -> str:
    """What is at a path beneath a root, a `kind` of `kata.protocols.files.Found`.

    Raises:
        InvalidArgument: it is no path.
        OSError: a directory on the way cannot be entered.
    """
    if "\0" in path:
        raise InvalidArgument("a path has a NUL byte")
    try:
        fd = openat2(root, path or ".", os.O_PATH | (0 if follow else os.O_NOFOLLOW))
    except (FileNotFoundError, NotADirectoryError):
        return ""
    try:
        return _KINDS.get(stat.S_IFMT(os.fstat(fd).st_mode), "other")
    finally:
        os.close(fd)


def _open_root(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound("the container has just ended") from error


def _open_directory(root: int, path: str) -> int:
    try:
        return openat2(root, path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise NotFound(f"{path}: {(error.strerror or '').lower()}") from error
