"""Releasing what a ledger lists: every entry, whatever becomes of the others."""

from __future__ import annotations

from kata.runtime.ledger.kinds import FILE, PROCESS, RELEASERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


def release(held: Sequence[tuple[str, str]]) -> list[str]:
    """Release (kind, value) pairs, newest first; `held` is in the order in which they were acquired.

    Returns:
        One sentence for each that could not be released.
    """
    problems: list[str] = []
    newest_first = held[::-1]
    # Processes before all: where they are and what they use can be released only then.
    for kind, value in sorted(newest_first, key=lambda entry: entry[0] != PROCESS):
        try:
            _releaser(kind)(value)
        except OSError as error:
            problems.append(f"{kind} {value}: {error.strerror or error}")
    return problems


def load(kinds: Iterable[str]) -> None:
    """Import the releasers of some kinds, and of processes and files, which every sandbox has."""
    for kind in {PROCESS, FILE, *kinds}:
        _releaser(kind)


def _releaser(kind: str) -> Callable[[str], None]:
    module, _, name = RELEASERS[kind].partition(":")
    # Not importlib: `delete` would load it for this line alone.
    releaser: Callable[[str], None] = getattr(__import__(module, fromlist=[name]), name)
    return releaser
