"""Text that no terminal and no parser takes for anything but text: a guest, which is hostile, may have written it."""

from __future__ import annotations


def visible(text: str, *, keep: str = "") -> str:
    r"""Write characters that are not printable as Python's escapes, such as \x1b; those in `keep` stay."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else character.encode("unicode_escape").decode()
        for character in text
    )
