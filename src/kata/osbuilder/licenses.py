"""Under which licenses a package may be used: the names in its copyright file.

Most are machine-readable, so that the names are in fields; of the others, the licenses are known that Debian itself
has a copy of. Pure: text in, names out.

Reference: Debian Policy 12.5; https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
"""

from __future__ import annotations

import re

_FORMAT = re.compile(r"\AFormat:\s*\S*copyright-format", re.IGNORECASE)
_FIELD = re.compile(r"^License:[ \t]*(\S[^\n]*)$", re.MULTILINE | re.IGNORECASE)
_COMMON = re.compile(r"/usr/share/common-licenses/([A-Za-z][A-Za-z0-9.+-]*[A-Za-z0-9])")
_MAX_NAMES = 64


def names(text: str) -> list[str]:
    """The licenses in a copyright file, sorted; none if it names none in a way that is understood.

    Args:
        text: of a package that may be anybody's.
    """
    found = _FIELD.findall(text) if _FORMAT.match(text) else _COMMON.findall(text)
    printable = {" ".join(name.split())[:80] for name in found if name.isprintable()}
    return sorted(printable, key=str.lower)[:_MAX_NAMES]
