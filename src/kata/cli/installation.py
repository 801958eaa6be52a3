"""Whether an installation from a package or archive is all there: a disk was full, or an unpacking was interrupted."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kata import installed

#: Beside the package: digests of all files there but for the guest image, which has its own.
LIST = installed.IMAGES.with_name("SHA256SUMS")


def damaged(listing: Path = LIST) -> list[str]:
    """The files that are missing or differ, by their names in the list; none if there is no list, as with pip."""
    found = []
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        digest, _, name = line.partition("  ")
        try:
            content = (listing.parent / name).read_bytes()
        except OSError:
            found.append(name)
        else:
            if hashlib.sha256(content).hexdigest() != digest:
                found.append(name)
    return found
