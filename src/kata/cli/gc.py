"""`kata gc`: give back what sandboxes left whose process is gone.

A sandbox is alive as long as a process has its ledger locked. After a reboot the ledgers are gone with /run, while an
unpacked image beneath RUN_ROOT is not: a tree whose sandbox has no state directory is nobody's either.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kata.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from kata.oci.ids import validate_id
from kata.runtime.ledger.journal import STATE_ROOT, Ledger, Locked
from kata.runtime.ledger.kinds import TREE

#: Where `kata run` unpacks images, one directory a sandbox.
RUN_ROOT = Path("/var/lib/kata/run")


@dataclass(frozen=True)
class Released:
    """What became of one dead sandbox.

    Attributes:
        given_back: what it held, as "kind value".
        problems: one sentence for each thing that is still there.
    """

    sandbox_id: str
    given_back: tuple[str, ...]
    problems: tuple[str, ...]


def candidates(state_root: Path = Path(STATE_ROOT), run_root: Path = RUN_ROOT) -> Iterator[str]:
    """Ids of the sandboxes that have something on this host, alive or not."""
    names = {entry.name for root in (state_root, run_root) for entry in _directories(root)}
    for name in sorted(names):
        try:
            yield validate_id(name)
        except InvalidArgument:
            continue  # nothing that this project made


def leftovers(state_root: Path = Path(STATE_ROOT), run_root: Path = RUN_ROOT) -> list[str]:
    """Ids of the sandboxes that nobody runs any more. Looks only; the lock is held for a moment."""
    return [name for name in candidates(state_root, run_root) if not _is_alive(state_root / name)]


def _is_alive(directory: Path) -> bool:
    if not directory.is_dir():
        return False
    try:
        Ledger(str(directory)).close()
    except Locked:
        return True
    return False


def release(sandbox_id: str, state_root: Path = Path(STATE_ROOT), run_root: Path = RUN_ROOT) -> Released | None:
    """Give back what a sandbox left; None if it is alive.

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
    """Release every dead sandbox, one after the other.

    Raises:
        PermissionDenied: this is not root.
        FailedPrecondition: a ledger cannot be opened.
    """
    if os.geteuid() != 0:
        raise PermissionDenied("kata gc needs root", hint="run it with sudo")
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
