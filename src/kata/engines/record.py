"""What was changed for an engine, kept until it is taken back: written before the first file is touched.

    /var/lib/kata/setup/containerd.json

A killed `kata setup` leaves a record and some files changed or none; `kata unset` takes back what was done, and so does
the next `kata setup`. A file that cannot be written takes back those that were.
"""

from __future__ import annotations

import base64
import errno
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from kata.engines.change import Change, taken_back
from kata.errors import FailedPrecondition, KataError, ResourceExhausted
from kata.linux import atomic_file

ROOT = Path("/var/lib/kata/setup")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Record:
    """What was changed for an engine.

    Attributes:
        changes: in the order in which they were made.
        made: directories that did not exist, outermost first.
    """

    changes: tuple[Change, ...] = ()
    made: tuple[Path, ...] = ()

    def to_json(self) -> str:
        """As a file."""
        changes = [
            {
                "path": str(one.path),
                "before": None if one.before is None else base64.b64encode(one.before).decode(),
                "at": one.at,
                "inserted": base64.b64encode(one.inserted).decode(),
                "mode": one.mode,
            }
            for one in self.changes
        ]
        return json.dumps({"format": 1, "changes": changes, "made": list(map(str, self.made))}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Of a file.

        Raises:
            ValueError: it is none.
            KeyError, TypeError: it lacks something.
        """
        document = json.loads(text)
        if document["format"] != 1:
            raise ValueError(f"format {document['format']}")
        changes = (
            Change(
                Path(one["path"]),
                None if one["before"] is None else base64.b64decode(one["before"], validate=True),
                int(one["at"]),
                base64.b64decode(one["inserted"], validate=True),
                int(one["mode"]),
            )
            for one in document["changes"]
        )
        return cls(tuple(changes), tuple(map(Path, document["made"])))


def load(engine: str, root: Path = ROOT) -> Record:
    """The record of an engine; an empty one if it is not set up.

    Raises:
        FailedPrecondition: it cannot be read.
    """
    path = root / f"{engine}.json"
    try:
        return Record.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Record()
    except OSError as error:
        raise FailedPrecondition(f"cannot read {path}: {(error.strerror or '').lower()}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise FailedPrecondition(
            f"{path} is damaged: {str(error)[:100]}",
            hint=f"take what kata setup has changed out of {engine}'s configuration by hand, and remove the file",
        ) from None


def read(path: Path) -> bytes | None:
    """A file's content; None if there is no such file.

    Raises:
        FailedPrecondition: it cannot be read.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FailedPrecondition(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None


def without(record: Record) -> dict[Path, bytes | None]:
    """What each of the changed files has to become for all to be taken back.

    Raises:
        FailedPrecondition: as `taken_back`.
    """
    return {change.path: taken_back(change, read(change.path)) for change in record.changes}


def undo(engine: str, record: Record, root: Path = ROOT) -> None:
    """Take back what was changed for an engine. Files come first: what is killed is done by the next one.

    Raises:
        FailedPrecondition: as `taken_back`, or a file cannot be written; nothing was changed, or all that could be was.
        ResourceExhausted: the disk is full.
    """
    contents = without(record)
    _write(contents, {change.path: change.mode for change in record.changes})
    for directory in reversed(record.made):
        with suppress(OSError):
            directory.rmdir()
    (root / f"{engine}.json").unlink(missing_ok=True)
    for directory in (root, root.parent):
        # It may have been made for this record alone.
        with suppress(OSError):
            directory.rmdir()


def do(engine: str, changes: Iterable[Change], root: Path = ROOT) -> None:
    """Make changes, all of them or none, and keep a record of them.

    Raises:
        FailedPrecondition: a file has changed since the plan was made.
        KataError: a file cannot be written; ResourceExhausted: since the disk is full.
    """
    changes = tuple(changes)
    for change in changes:
        if read(change.path) != change.before:
            raise FailedPrecondition(f"{change.path} has changed meanwhile", hint="run kata setup again")
    missing = dict.fromkeys(
        parent for change in changes for parent in reversed(change.path.parents) if not os.path.lexists(parent)
    )
    record = Record(changes, tuple(missing))
    try:
        root.mkdir(parents=True, exist_ok=True)
        atomic_file.write(root / f"{engine}.json", record.to_json(), mode=0o600)
        atomic_file.sync_directory(root)
        for directory in record.made:
            directory.mkdir(exist_ok=True)
        _write({change.path: change.after for change in changes}, {change.path: change.mode for change in changes})
    except OSError as error:
        _give_up(engine, record, root)
        _fail(Path(error.filename or root), error)
    except KataError:
        _give_up(engine, record, root)
        raise


def _give_up(engine: str, record: Record, root: Path) -> None:
    """Take back what was done so far, as far as that can be: the reason for it is worth more than what fails here."""
    with suppress(OSError, KataError):
        undo(engine, record, root)


def _write(contents: Mapping[Path, bytes | None], modes: Mapping[Path, int]) -> None:
    """Have files be these; None removes one. What already is stays untouched.

    Raises:
        FailedPrecondition: a file cannot be written.
        ResourceExhausted: the disk is full.
    """
    for path, content in contents.items():
        if read(path) == content:
            continue
        try:
            if content is None:
                path.unlink()
            else:
                _replace(path, content, modes[path])
            atomic_file.sync_directory(path.parent)
        except OSError as error:
            _fail(path, error)


def _replace(path: Path, content: bytes, mode: int) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        status = None
    with atomic_file.Replacement(path, mode=mode) as file:
        file.write(content)
        file.flush()
        if status is None:
            os.fchmod(file.fileno(), mode)
        else:
            os.fchown(file.fileno(), status.st_uid, status.st_gid)
            os.fchmod(file.fileno(), status.st_mode & 0o7777)
        os.fsync(file.fileno())


def _fail(path: Path, error: OSError) -> NoReturn:
    """Say that a file cannot be written.

    Raises:
        ResourceExhausted: the disk is full.
        FailedPrecondition: of any other reason.
    """
    words = f"cannot write {path}: {(error.strerror or str(error)).lower()}"
    if error.errno in _FULL:
        raise ResourceExhausted(words, hint="make room; nothing was changed") from None
    raise FailedPrecondition(words, hint="nothing was changed") from None
