"""Copying files between host and container: a program that the agent runs in the guest itself, by ExecProcess.

Without a container's id ExecProcess means the guest (`kata.agent.guest_processes`). This program needs no console;
its arguments are made here. Its standard streams carry a tar stream one way, and standard error ends with a line of
JSON: a `Report`. Another agent answers with NOT_FOUND.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kata.errors import Code, InvalidArgument, KataError, Unavailable, from_code

PROGRAM = "kata-files"
#: What a path is: answers a `Found`, as JSON, on standard output.
STAT = "stat"
#: Sends a tar stream of a file or directory.
GET = "get"
#: Extracts a tar stream into a directory.
PUT = "put"
#: How many arguments each may have, beside the container's id.
_COUNTS = {STAT: (1,), GET: (3, 4), PUT: (2,)}
#: Instead of user and group of PUT: the archive's own.
KEEP_OWNERS = "-"


@dataclass(frozen=True)
class Found:
    """What is at a path.

    Attributes:
        kind: "file", "directory", "link", "other", or "" if there is nothing.
        target: the same of what a link leads to; otherwise as `kind`.
    """

    kind: str
    target: str

    def to_json(self) -> bytes:
        """One line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Found:
        """The reverse.

        Raises:
            Unavailable: the guest says something else.
        """
        said = _object(text)
        return cls(str(said.get("kind", ""))[:16], str(said.get("target", ""))[:16])


@dataclass(frozen=True)
class Report:
    """How a copy has ended in the guest.

    Attributes:
        error: why it failed; None if it did not.
        skipped: what was left out, in names of the guest.
        plain: of what an extended attribute was left out.
    """

    error: KataError | None = None
    skipped: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """One line."""
        if self.error is not None:
            return json.dumps({"code": self.error.code, "error": self.error.message}).encode() + b"\n"
        return json.dumps({"skipped": self.skipped, "plain": self.plain}).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Report:
        """The reverse, of the last line of a text.

        Raises:
            Unavailable: the guest says something else.
        """
        said = _object(text.rstrip(b"\n").rpartition(b"\n")[2])
        if "error" in said:
            code = said.get("code")
            return cls(from_code(code if isinstance(code, int) else Code.INTERNAL, str(said["error"])[:1000]))
        return cls(None, _names(said.get("skipped")), _names(said.get("plain")))


def _names(said: object) -> tuple[str, ...]:
    return tuple(str(name)[:200] for name in said[:20]) if isinstance(said, list) else ()


def _object(text: bytes) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise Unavailable("the guest's answer about files is not JSON")
    return said


def stat_arguments(container_id: str, path: str) -> list[str]:
    """Ask what is at a path of a container."""
    return [PROGRAM, STAT, container_id, path]


def get_arguments(container_id: str, path: str, name: str, *, follow: bool, attributes: bool = False) -> list[str]:
    """Ask for a tar stream of a path, as `kata.archive.pack.pack` makes it."""
    # The last one only if it is asked for: the agent of a sandbox that runs may be of a version without it.
    more = ["attributes"] if attributes else []
    return [PROGRAM, GET, container_id, path, name, "follow" if follow else "", *more]


def put_arguments(container_id: str, directory: str, owner: tuple[int, int] | None) -> list[str]:
    """Have a tar stream extracted into a directory, as `kata.archive.extract.extract` does."""
    return [PROGRAM, PUT, container_id, directory, KEEP_OWNERS if owner is None else f"{owner[0]}:{owner[1]}"]


def parse(arguments: Sequence[str]) -> tuple[str, str, list[str]]:
    """Verb, container id and the other arguments of a command line of PROGRAM.

    Raises:
        InvalidArgument: it is none.
    """
    program, verb, container_id, *rest = [*arguments, "", "", ""][: max(3, len(arguments))]
    if program != PROGRAM or len(rest) not in _COUNTS.get(verb, ()):
        raise InvalidArgument(f"invalid arguments of {PROGRAM}: {' '.join(arguments)[:100]!a}")
    return verb, container_id, rest
