"""Copy files between this host and a container, with the rules of `docker cp` for what the destination means.

    arguments → places; what is at both of them → plan (pure) → a tar stream from the one that packs to the one that
    extracts, in the guest by its agent's own program, so that the image needs none

What comes from the guest is untrusted: it is extracted beneath the destination, under the one name that was planned.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from kata.archive.extract import extract
from kata.archive.pack import Totals, pack
from kata.cli.agent_files import AgentFiles
from kata.cli.render import printable, warn
from kata.cli.root import require_root
from kata.cli.running import RunningSandbox
from kata.cli.streams import HostSource
from kata.errors import FailedPrecondition, InvalidArgument, NotFound
from kata.protocols.files import Found, Report

STREAM = "-"
#: Seconds between two updates of the progress.
_PROGRESS_INTERVAL_S = 0.2


@dataclass(frozen=True)
class Place:
    """One side of a copy.

    Attributes:
        path: as it was written, or STREAM.
        sandbox: its name, as `naming.resolve` takes it; "" for this host.
        container: id, its beginning, or name; None for the only one.
    """

    path: str
    sandbox: str = ""
    container: str | None = None

    @property
    def is_content(self) -> bool:
        """Whether the path means what is in a directory, not the directory."""
        return posixpath.basename(self.path) in (".", "..") or self.path.strip("/") == ""

    @property
    def name(self) -> str:
        """The last name of the path."""
        return posixpath.basename(posixpath.normpath(self.path))


def parse_place(text: str) -> Place:
    """Parse a path of this host, "-", or SANDBOX:PATH or SANDBOX:CONTAINER:PATH.

    A path of this host that has a colon begins with / or ./.

    Raises:
        InvalidArgument: the path of a container is missing, or no text.
    """
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidArgument(f"{text[:60]!a} is not valid text")
    sandbox, colon, rest = text.partition(":")
    if text == STREAM or not colon or text[0] in "./":
        return Place(text)
    container, colon, path = rest.partition(":")
    if rest.startswith("/") or not colon:
        container, path = "", rest
    if not path or not sandbox:
        raise InvalidArgument(f"{text!r} has no path", hint="write SANDBOX:PATH or SANDBOX:CONTAINER:PATH")
    return Place(path, sandbox, container or None)


@dataclass(frozen=True)
class Plan:
    """Where a copy goes.

    Attributes:
        into: the directory that is extracted into, which exists.
        name: that the copy has there; "": what is in the source directory goes there.
    """

    into: str
    name: str


def plan_copy(source: Place, kind: str, target: Place, there: str) -> Plan:
    """Where a copy goes, as `docker cp` has it.

    Args:
        source: what is copied.
        kind: of what is there: a `kind` of `kata.protocols.files.Found`.
        target: where it goes.
        there: the kind of what is there already; "" for nothing.

    Raises:
        NotFound: there is nothing to be copied, or no directory to copy into.
        FailedPrecondition: a directory would replace a file.
    """
    if not kind:
        raise NotFound(f"there is no {source.path}")
    if there == "directory":
        return Plan(target.path, "" if source.is_content else source.name)
    if there and kind == "directory":
        raise FailedPrecondition(f"cannot copy a directory to {target.path}, which is a file")
    if target.path.endswith("/") and (there or kind != "directory"):
        raise NotFound(f"{target.path} is not a directory")
    above, name = posixpath.split(posixpath.normpath(target.path))
    return Plan(above or ".", name)


@dataclass(frozen=True)
class CopyRequest:
    """What the user asked for.

    Attributes:
        source: what is copied.
        target: where it goes.
        archive: whether owners and extended attributes are kept.
        follow: whether a symbolic link is followed that is the source itself.
        quiet: whether there is no progress.
    """

    source: Place
    target: Place
    archive: bool = False
    follow: bool = False
    quiet: bool = False


def copy(wanted: CopyRequest) -> None:
    """Copy.

    Raises:
        PermissionDenied: this is not root.
        InvalidArgument: neither side, or both, is in a sandbox, or an archive would go to a terminal.
        FailedPrecondition: a file of this host cannot be read or written.
        BrokenPipeError: nobody reads the archive any more.
        KataError: it failed; what was copied by then stays.
    """
    require_root("kata cp")
    source, target = wanted.source, wanted.target
    if bool(source.sandbox) == bool(target.sandbox):
        which = "two sandboxes" if source.sandbox else "two paths of this host"
        raise InvalidArgument(f"cannot copy between {which}", hint="copy to this host first, or use cp(1)")
    if target.path == STREAM and os.isatty(1):
        raise InvalidArgument("an archive is not written to a terminal", hint="redirect it, or name a path")
    remote = source if source.sandbox else target
    sandbox = RunningSandbox(remote.sandbox)
    try:
        asyncio.run(_copy(wanted, sandbox, remote.container))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise FailedPrecondition(f"{error.filename or 'the archive'}: {(error.strerror or '').lower()}") from error


async def _copy(wanted: CopyRequest, sandbox: RunningSandbox, named: str | None) -> None:
    container = await sandbox.container(named)
    async with await sandbox.agent() as client:
        files = AgentFiles(client)
        with _progress(quiet=wanted.quiet or not os.isatty(2)) as progress:
            run = _from_guest if wanted.source.sandbox else _to_guest
            report, totals = await run(wanted, files, container, progress)
    for path in (*report.skipped, *(totals.skipped or ())):
        warn(f"left out, since it is a device or a socket: {printable(path)}")
    plain = sorted({*report.plain, *(totals.plain or ())})
    for path in plain:
        warn(f"without its access control list or another attribute, which cannot be kept: {printable(path)}")


async def _from_guest(
    wanted: CopyRequest, files: AgentFiles, container: str, progress: Progress
) -> tuple[Report, Totals]:
    source, target = wanted.source, wanted.target
    found = await files.stat(container, source.path)
    follow, kind = _followed(wanted, found)
    if target.path == STREAM:
        if not kind:
            raise NotFound(f"there is no {source.path}")
        name = "" if source.is_content else source.name
        sent = files.get_to(1, container, source.path, name, follow=follow, attributes=wanted.archive)
        return await sent, Totals()
    plan = plan_copy(source, kind, target, _kind_here(target.path))
    into = os.open(plan.into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    owner = None if wanted.archive else (os.geteuid(), os.getegid())

    def take(stream: BinaryIO) -> Totals:
        label = f"what the guest sends for {source.path}"
        return extract(stream, into, label, owner=owner, only=plan.name, told=progress.told)

    try:
        return await files.get_through(
            container, source.path, plan.name, take, follow=follow, attributes=wanted.archive
        )
    finally:
        os.close(into)


async def _to_guest(
    wanted: CopyRequest, files: AgentFiles, container: str, progress: Progress
) -> tuple[Report, Totals]:
    source, target = wanted.source, wanted.target
    there = (await files.stat(container, target.path)).target
    owner = None if wanted.archive else (0, 0)
    if source.path == STREAM:
        if there != "directory":
            problem = "is not a directory" if there else "does not exist"
            raise NotFound(f"{target.path} {problem} in the container", hint="the archive goes into a directory")
        return await files.put(container, target.path, HostSource(0), owner=owner), Totals()
    found = Found(_kind_here(source.path, follow=False), _kind_here(source.path))
    follow, kind = _followed(wanted, found)
    plan = plan_copy(source, kind, target, there)
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def give(stream: BinaryIO) -> Totals:
        path = os.path.join(os.getcwd(), source.path)
        return pack(stream, root, path, plan.name, follow=follow, attributes=wanted.archive, told=progress.told)

    try:
        return await files.put_from(container, plan.into, give, owner=owner)
    finally:
        os.close(root)


def _followed(wanted: CopyRequest, found: Found) -> tuple[bool, str]:
    """Whether the source is followed if it is a link, and what it is then."""
    follow = wanted.follow or wanted.source.path.endswith("/") or wanted.source.is_content
    return follow, found.target if follow else found.kind


def _kind_here(path: str, *, follow: bool = True) -> str:
    """What is at a path of this host, a `kind` of `kata.protocols.files.Found`."""
    if not os.path.lexists(path) or (follow and not os.path.exists(path)):
        return ""
    if not follow and os.path.islink(path.rstrip("/") or "/"):
        return "link"
    return "directory" if os.path.isdir(path) else "file" if os.path.isfile(path) else "other"


class Progress:
    """A line on a terminal that says how much has been copied.

    Args:
        quiet: say nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._last = time.monotonic()
        self._totals = Totals()

    def told(self, totals: Totals) -> None:
        """So much has been copied; called from the thread that does it."""
        self._totals = totals
        now = time.monotonic()
        if not self._quiet and now > self._last + _PROGRESS_INTERVAL_S:
            self._last = now
            sys.stderr.write(f"\r{self._text()}\x1b[K")
            sys.stderr.flush()

    def finish(self) -> None:
        """That was all."""
        if not self._quiet and self._totals.entries:
            sys.stderr.write(f"\r{self._text()}\x1b[K\n")

    def _text(self) -> str:
        size = f"copied {self._totals.size / (1 << 20):.1f} MiB"
        return size if self._totals.entries == 1 else f"{size}, {self._totals.entries} files and directories"


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Progress]:
    progress = Progress(quiet=quiet)
    try:
        yield progress
    finally:
        progress.finish()
