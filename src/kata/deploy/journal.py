"""What was begun on a node, so that whoever comes after a kill knows what to finish, or to take back.

    /var/lib/kata/deploy.json, of the node

It is written before the first file is, and removed after the last one: a tree in the prefix without a journal is
somebody else's. What `kata setup` changes has records of its own.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from kata.errors import FailedPrecondition
from kata.linux import atomic_file

#: On the node.
DIRECTORY = "/var/lib/kata"
NAME = "deploy.json"
_FORMAT = 1


@dataclass(frozen=True)
class Journal:
    """What was begun.

    Attributes:
        prefix: where the tree is, on the node.
        stale: the containerd that ran when its configuration was changed (`Node.engine`), which does not know of the
            change yet; "" for none.
    """

    prefix: str
    stale: str = ""


def load(directory: Path) -> Journal | None:
    """The journal of a node; None if nothing was begun.

    Args:
        directory: the node's, as it is found from here.

    Raises:
        FailedPrecondition: it cannot be read.
    """
    path = directory / NAME
    try:
        return _parse(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FailedPrecondition(
            f"cannot read {path}: {str(error)[:100]}",
            hint="on the node, run PREFIX/bin/kata unset, then remove PREFIX and this file",
        ) from None


def _parse(content: bytes) -> Journal:
    """Read a journal.

    Raises:
        ValueError: it is none.
        KeyError, TypeError, AttributeError: it lacks something.
    """
    document = json.loads(content)
    if document.pop("format") != _FORMAT:
        raise ValueError("another version has written it")
    journal = Journal(**document)
    if not journal.prefix.startswith("/"):
        raise ValueError("it names no prefix")
    return journal


def write(journal: Journal, directory: Path) -> None:
    """Have a journal survive whatever comes now. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_file.Replacement(directory / NAME, mode=0o600) as file:
        file.write(json.dumps({"format": _FORMAT, **asdict(journal)}).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    atomic_file.sync_directory(directory)


def remove(directory: Path) -> None:
    """Say that nothing is left. Raises OSError."""
    (directory / NAME).unlink(missing_ok=True)
    with suppress(OSError):
        # It may have been made for this file alone.
        directory.rmdir()
