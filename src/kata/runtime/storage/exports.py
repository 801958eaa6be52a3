"""Exports: what of the host is in the shared tree. Each source is there once for the whole sandbox.

Sockets, FIFOs, locks and mappings work between two who use a file only if it is one file for the guest's kernel, that
is one path in the shared tree. So whoever mounts a source that is there already gets the same export, and who mounts a
part of one gets that part of it, mounted in the guest.

    asked for                                  given
    a source for the first time                an export
    the same again, also through another       the same export; read-only on the host only as long as nobody may
    mount on the same terms                    write to it, and read-only in each container that has it so
    a part of an export that may be written    that part, mounted in the guest
    a part of a read-only one                  an export of its own: what nobody may write stays as it is mounted
    a source with mounts beneath it            an export for each way in which it is mounted ("rbind", "ro", "rro")

`plan_uses` is a pure function; `kata.runtime.storage.shared_tree` carries out what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from kata.runtime.storage.host_paths import HostPath, Place, prefixes


class Submounts(Enum):
    """What becomes of the mounts beneath a source."""

    NONE = "there are none"
    HIDDEN = "not included"
    INCLUDED = "included"
    WRITABLE = "included, and writable although the source is not"
    READ_ONLY = "included, and read-only like the source"


@dataclass(frozen=True)
class Export:
    """A path of the host that is bind-mounted into the shared tree.

    Attributes:
        source: absolute path on the host.
        name: path in the shared tree.
        identity: device and inode when this was planned; None for any.
        place: where it was then; None if that is unknown.
        submounts: what becomes of the mounts beneath it.
    """

    source: str
    name: str
    identity: tuple[int, int] | None = None
    place: Place | None = field(default=None, compare=False)
    submounts: Submounts = Submounts.NONE


@dataclass(frozen=True)
class Use:
    """What one mount of a container has of an export.

    Attributes:
        export: in the shared tree.
        write: whether the container may write to it.
        part: path in the export; "" for all of it.
        identity: device and inode of the part.
    """

    export: Export
    write: bool = False
    part: str = ""
    identity: tuple[int, int] | None = None

    @property
    def path(self) -> str:
        """The path in the shared tree."""
        return f"{self.export.name}/{self.part}" if self.part else self.export.name


@dataclass(frozen=True)
class Wanted:
    """A path of the host that is to be in the shared tree.

    Attributes:
        source: absolute path on the host.
        found: what is there; None if that is unknown.
        write: whether its user may write to it.
        recursive: whether the mounts beneath it are included.
        readonly_below: whether these are read-only, too.
    """

    source: str
    found: HostPath | None
    write: bool = False
    recursive: bool = True
    readonly_below: bool = False

    @property
    def submounts(self) -> Submounts:
        """What becomes of the mounts beneath it."""
        if self.found is None or self.found.place is None or not self.found.place.submounts:
            return Submounts.NONE
        if not self.recursive:
            return Submounts.HIDDEN
        if self.readonly_below:
            return Submounts.READ_ONLY
        return Submounts.INCLUDED if self.write else Submounts.WRITABLE

    def export(self, name: str) -> Export:
        """An export of its own, by that name in the shared tree."""
        if self.found is None:
            return Export(self.source, name)
        return Export(self.source, name, self.found.identity, self.found.place, self.submounts)


def plan_uses(
    wanted: Sequence[Wanted], exports: Mapping[Export, bool], now: Mapping[str, Place], name: Callable[[], str]
) -> list[Use]:
    """Say which export each path is used through.

    Args:
        wanted: the paths.
        exports: those of the sandbox, and whether somebody may write to them.
        now: where the exports are by now, by their names.
        name: makes names in the shared tree that have never been used.

    Returns:
        A use for each path, in the same order.
    """
    table = _Table(exports, now)
    uses: dict[int, Use] = {}
    # A directory comes before what is in it, and a writable use before the others.
    for index in sorted(range(len(wanted)), key=lambda index: (_depth(wanted[index]), not wanted[index].write)):
        uses[index] = table.use(wanted[index], name)
    return [uses[index] for index in range(len(wanted))]


class _Table:
    """The exports of a sandbox, to be found by what they are and by where they are."""

    def __init__(self, exports: Mapping[Export, bool], now: Mapping[str, Place]) -> None:
        self._writable: dict[Export, bool] = {}
        self._same: dict[object, Export] = {}
        self._at: dict[tuple[str, str, str], list[tuple[Export, Place]]] = {}
        for export, writable in exports.items():
            self._add(export, now.get(export.name, export.place))
            self._writable[export] = writable

    def _add(self, export: Export, now: Place | None) -> None:
        if export.place and now:
            self._same[_key(export.identity, export.place, export.submounts)] = export
            self._at.setdefault((now.filesystem, export.place.terms, now.path), []).append((export, now))

    def use(self, wanted: Wanted, name: Callable[[], str]) -> Use:
        found, place = wanted.found, wanted.found.place if wanted.found else None
        if found and place:
            if same := self._same.get(_key(found.identity, place, wanted.submounts)):
                self._writable[same] |= wanted.write
                return Use(same, wanted.write)
            if wanted.submounts is Submounts.NONE and (within := self._within(place)):
                return Use(within[0], wanted.write, within[1], found.identity)
        export = wanted.export(name())
        self._add(export, place)
        self._writable[export] = wanted.write
        return Use(export, wanted.write)

    def _within(self, place: Place) -> tuple[Export, str] | None:
        """The innermost export that a path is in, and where, if somebody may write to it."""
        for directory, part in _ancestors(place.path):
            for export, now in self._at.get((place.filesystem, place.terms, directory), ()):
                hidden = any(outer in now.submounts for outer in prefixes(part))
                if self._writable[export] and not hidden and _is_text(part):
                    return export, part
        return None


def _key(identity: tuple[int, int] | None, place: Place, submounts: Submounts) -> object:
    """What is equal for two sources that can be one export."""
    # What is mounted beneath a directory differs by the mount that it is seen through.
    return identity, place.filesystem, place.terms, submounts, place.mount if submounts is not Submounts.NONE else 0


def _depth(wanted: Wanted) -> int:
    return len(wanted.found.place.path) if wanted.found and wanted.found.place else 0


def _ancestors(path: str) -> Iterator[tuple[str, str]]:
    """Each directory that a path is in, innermost first, and the way from there."""
    end = len(path)
    while (end := path.rfind("/", 0, end)) >= 0 and len(path) > 1:
        yield path[:end] or "/", path[end + 1 :]


def _is_text(part: str) -> bool:
    """Whether a protocol with text in UTF-8 can carry it."""
    try:
        part.encode()
    except UnicodeEncodeError:
        return False
    return True
