"""What is to be changed in a file: something put in, nothing taken out, so that it can be taken out again.

Pure: bytes in, bytes out. A file is never read into a document and written anew, since that would lose its comments and
its form; text is put in, and the parsed result compared with what was meant.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata.errors import FailedPrecondition, InvalidArgument


@dataclass(frozen=True)
class Change:
    """What one file becomes.

    Attributes:
        path: of the file, no symbolic link.
        before: its content; None if it does not exist.
        at: where in it, in bytes.
        inserted: what is put in there.
        mode: permissions of a new file.
    """

    path: Path
    before: bytes | None
    at: int
    inserted: bytes
    mode: int = 0o644

    @property
    def after(self) -> bytes:
        """The content with it."""
        before = self.before or b""
        return before[: self.at] + self.inserted + before[self.at :]


def new_file(path: Path, content: bytes, mode: int = 0o644) -> Change:
    """A change that makes a file."""
    return Change(path, None, 0, content, mode)


def taken_back(change: Change, now: bytes | None) -> bytes | None:
    """What a file has to become for a change to be taken back; None: not to exist.

    Args:
        change: that was made.
        now: the file's content; None if it does not exist any more.

    Raises:
        FailedPrecondition: somebody has changed the file since, just where something was put in.
    """
    if now is None or now == change.before:
        return now
    if now == change.after:
        return change.before
    if change.before is not None and now.count(change.inserted) == 1:
        left = now.replace(change.inserted, b"")
        try:
            parsed(change.path, left)
        except InvalidArgument:
            pass
        else:
            return left
    raise FailedPrecondition(
        f"{change.path} was edited since kata setup changed it, in the same place",
        hint=f"remove what is about kata by hand, and run kata unset again; it was: {_one_line(change.inserted)}",
    )


def _one_line(content: bytes) -> str:
    return " ".join(content.decode(errors="replace").split())


def parsed(path: Path, content: bytes) -> dict[str, Any]:
    """The document of a configuration, TOML or (by its name) JSON; an empty file is an empty one.

    Raises:
        InvalidArgument: it is none.
    """
    hint = "mend it first; nothing was changed"
    try:
        text = content.decode()
        document = json.loads(text or "{}") if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"cannot understand {path}: {str(error)[:200]}", hint=hint) from None
    if not isinstance(document, dict):
        raise InvalidArgument(f"cannot understand {path}: it is no JSON object", hint=hint)
    return document


def merged(document: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """A document with another one's keys, table by table."""
    both = dict(document)
    for key, value in more.items():
        there = both.get(key)
        both[key] = merged(there, value) if isinstance(there, dict) and isinstance(value, dict) else value
    return both


def table(document: Any, *keys: str) -> dict[str, Any]:
    """A table of a document by its path; an empty one if it is not there, or is something else."""
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}


def diff(before: bytes | None, after: bytes | None, path: Path) -> str:
    """How the content of a file changes, as `diff -u` shows it; None: there is no such file."""
    lines = difflib.unified_diff(
        _lines(before),
        _lines(after),
        "/dev/null" if before is None else str(path),
        "/dev/null" if after is None else str(path),
    )
    return "".join(lines)


def _lines(content: bytes | None) -> Sequence[str]:
    lines = (content or b"").decode(errors="replace").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n\\ No newline at end of file\n"
    return lines
