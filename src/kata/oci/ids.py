"""Names of sandboxes, containers and execs, checked before they become parts of paths.

The shim's lean start path imports this: no regular expressions.
"""

from __future__ import annotations

from kata.errors import InvalidArgument

MAX_ID = 76
"""Longest id, in characters. It is containerd's bound, and it keeps every socket below /run/kata/<id>/ within the 108
bytes that the kernel has for a socket's path."""

_ALPHANUMERIC = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_ALLOWED = _ALPHANUMERIC | frozenset("_.-")


def validate_id(identifier: str, what: str = "id") -> str:
    """Return the identifier if it is safe as a file name.

    Args:
        identifier: 1 to 76 of `a-z A-Z 0-9 _ . -`, the first a letter or digit (so never `.`, `..` or an option).
            Kata's agent wants two characters at least; containerd lets one pass, and so does this.
        what: names it in errors, e.g. "container id".

    Raises:
        InvalidArgument: it is empty, too long, or has other characters.
    """
    if not identifier:
        raise InvalidArgument(f"{what} is empty")
    if len(identifier) > MAX_ID:
        raise InvalidArgument(
            f"{what} '{_shown(identifier)}...' is {len(identifier)} characters long; the maximum is {MAX_ID}"
        )
    if identifier[0] not in _ALPHANUMERIC or not _ALLOWED.issuperset(identifier):
        raise InvalidArgument(
            f"invalid {what} '{_shown(identifier)}'",
            hint="use letters, digits, '_', '.' and '-', beginning with a letter or digit",
        )
    return identifier


def _shown(text: str) -> str:
    """One line for an error message, whatever the text holds."""
    return ascii(text[:MAX_ID])[1:-1]
