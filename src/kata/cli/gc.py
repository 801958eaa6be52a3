"""`kata gc`: release what sandboxes have left behind whose process is gone.

A sandbox runs as long as a process holds the lock on its ledger. After a reboot the ledgers are gone with /run, while
unpacked images beneath RUN_ROOT remain: a tree whose sandbox has no state directory is left behind, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kata.cli.root import require_root
from kata.errors import FailedPrecondition, InvalidArgument
from kata.runtime.ledger.journal import STATE_ROOT, Ledger, Locked
from kata.runtime.ledger.kinds import TREE
from kata.runtime.ledger.names import validate_name

#: Where `kata run` unpacks images, one directory per sandbox.
RUN_ROOT = Path("/var/lib/kata/run")


@dataclass(frozen=True)
class Released:
    """The result of one release.

    Attributes:
        sandbox_id: the name of the dead sandbox's state directory.
        held: what it held, as "kind value".
        problems: one message for each thing that could not be released.
    """

    sandbox_id: str
    held: tuple[str, ...]
    problems: tuple[str, ...]


def candidates(state_root: Path = Path(STATE_ROOT), run_root: Path = RUN_ROOT) -> Iterator[str]:
    """Yield the names of sandboxes that have something on this host, running or dead."""
    names = {entry.name for root in (state_root, run_root) for entry in _directories(root)}
    for name in sorted(names):
        try:
            yield validate_name(name)
        except InvalidArgument:
            continue  # not a sandbox


def leftovers(state_root: Path = Path(STATE_ROOT), run_root: Path = RUN_ROOT) -> list[str]:
    """Return the names of dead sandboxes. Nothing is changed; each ledger is locked for a moment.

    Raises:
        OSError: a ledger cannot be opened.
    """
    return [name for name in candidates(state_root, run_root) if not is_running(state_root / name)]


def is_running(directory: Path) -> bool:
    """Whether a process holds the ledger of a sandbox, which is locked for a moment. Raises OSError."""
    if not directory.is_dir():
        return False
    try:
        Ledger(str(directory)).close()
    except Locked:
        return True
    return False


def release(sandbox_id: str, state_root: Path = Path(STATE_ROOT), run_root: Path = RUN_ROOT) -> Released | None:
    """Release what a dead sandbox has left behind; None if it runs.

    Args:
        sandbox_id: the name of its state directory.
        state_root: the directory of state directories.
        run_root: the directory of unpacked images.

    Raises:
        OSError: the ledger cannot be opened.
    """
    try:
        ledger = Ledger(str(state_root / sandbox_id))
    except Locked:
        return None
    tree = (TREE, str(run_root / sandbox_id))
    if os.path.isdir(tree[1]) and tree not in ledger.held:
        ledger.hold(*tree)
    held = ledger.held
    problems = ledger.release()
    return Released(sandbox_id, tuple(f"{kind} {value}" for kind, value in held), tuple(problems))


def run(state_root: Path = Path(STATE_ROOT), run_root: Path = RUN_ROOT) -> Iterator[Released]:
    """Release what dead sandboxes have left behind, and yield the result for each.

    Raises:
        PermissionDenied: this is not root.
        FailedPrecondition: a ledger cannot be opened.
    """
    require_root("kata gc")
    for sandbox_id in candidates(state_root, run_root):
        try:
            released = release(sandbox_id, state_root, run_root)
        except OSError as error:
            raise FailedPrecondition(f"cannot open the ledger of sandbox {sandbox_id}: {error.strerror}") from error
        if released is not None:
            yield released


def _directories(root: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
