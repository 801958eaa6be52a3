"""What Docker has to be told: a name for the shim, in daemon.json. `--runtime io.containerd.kata.v2` needs nothing.

Reference: dockerd(8), "daemon.json", `runtimes` with `runtimeType`, since Docker 23.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from kata.engines.change import Change, merged, new_file, parsed
from kata.errors import FailedPrecondition, InvalidArgument

CONFIG = Path("/etc/docker/daemon.json")
NAME = "kata"
RUNTIME = {"runtimeType": "io.containerd.kata.v2"}
#: Older ones take runtimes by a path only, and not the shims of containerd.
OLDEST = 23

_VERSION = re.compile(r"version (\d+)\.\d+")
_WHITE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Docker:
    """What was found of Docker.

    Attributes:
        version: of the daemon, its first number.
        path: of its configuration.
        config: the configuration's content; None if there is none.
    """

    version: int
    path: Path = CONFIG
    config: bytes | None = None


def parse_version(printed: str) -> int:
    """What `dockerd --version` says.

    Raises:
        InvalidArgument: it is not understood.
    """
    if (found := _VERSION.search(printed)) is None:
        raise InvalidArgument(f"cannot understand Docker's version: {printed.strip()[:80]!r}")
    return int(found[1])


def plan(found: Docker) -> list[Change]:
    """What to change; nothing if somebody has done it by hand already.

    Raises:
        InvalidArgument: the configuration is not understood.
        FailedPrecondition: it has another runtime of this name, or Docker is too old.
    """
    if found.version < OLDEST:
        raise FailedPrecondition(
            f"Docker {found.version} runs no containerd shims by a name; {OLDEST} and later do",
            hint="use containerd, or a newer Docker; nothing was changed",
        )
    runtime = json.dumps(RUNTIME)
    if found.config is None or not found.config.strip():
        text = f'{{\n  "runtimes": {{\n    "{NAME}": {runtime}\n  }}\n}}\n'
        if found.config is None:
            return [new_file(found.path, text.encode())]
        return [Change(found.path, found.config, 0, text.encode())]
    document = parsed(found.path, found.config)
    runtimes = document.get("runtimes", {})
    if not isinstance(runtimes, dict):
        raise InvalidArgument(f"cannot understand {found.path}: runtimes is no object", hint="mend it first")
    if NAME in runtimes:
        if runtimes[NAME] == RUNTIME:
            return []
        raise FailedPrecondition(
            f"{found.path} has a runtime '{NAME}' already: {json.dumps(runtimes[NAME])[:80]}",
            hint="another Kata's, perhaps: take it out there first; nothing was changed",
        )
    text = found.config.decode()
    if "runtimes" in document:
        member = f'\n    "{NAME}": {runtime}'
        at, is_empty = _behind_brace(text, _value_of(text, "runtimes")), not runtimes
    else:
        member = f'\n  "runtimes": {{\n    "{NAME}": {runtime}\n  }}'
        at, is_empty = _behind_brace(text, 0), not document
    inserted = f"{member}\n" if is_empty else f"{member},"
    change = Change(found.path, found.config, len(text[:at].encode()), inserted.encode())
    try:
        says = json.loads(change.after)
    except ValueError:
        says = None
    if says != merged(document, {"runtimes": {NAME: RUNTIME}}):
        # Readers take the last one, and it was put into the first.
        raise InvalidArgument(f"cannot understand {found.path}: a name is there twice", hint="mend it first")
    return [change]


def _behind_brace(text: str, start: int) -> int:
    return text.index("{", start) + 1


def _value_of(text: str, wanted: str) -> int:
    """Where the value of a member of the outermost object begins; the text is valid JSON (RFC 8259)."""
    decoder = json.JSONDecoder()
    at = _behind_brace(text, 0)
    while True:
        name, at = decoder.raw_decode(text, _skip(text, at))
        at = _skip(text, text.index(":", at) + 1)
        if name == wanted:
            return at
        _, at = decoder.raw_decode(text, at)
        at = text.index(",", at) + 1


def _skip(text: str, at: int) -> int:
    found = _WHITE.match(text, at)
    assert found, "no white space is white space, too"
    return found.end()
