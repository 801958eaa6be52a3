"""Overlay options of bounded size: mount(2) takes one page of data, and an image of many layers needs more.

As in containerd, the lower directories are named relative to their common parent, and the mount is made from there.

Reference: mount(2), "data".
"""

from __future__ import annotations

import os

#: Bytes of data that mount(2) copies, one page less the final zero byte.
MAX_MOUNT_DATA = 4095

_LOWER = "lowerdir="


def compact(data: str) -> tuple[str, str]:
    """Shorten overlay options if they are too long.

    Returns:
        (directory, data): the working directory for the mount, "" for any, and the options.
    """
    if len(os.fsencode(data)) <= MAX_MOUNT_DATA:
        return "", data
    options = data.split(",")
    for index, option in enumerate(options):
        lower = option.removeprefix(_LOWER).split(":")
        if option.startswith(_LOWER) and len(lower) > 1:
            parent = os.path.commonpath(lower)
            options[index] = _LOWER + ":".join(os.path.relpath(path, parent) for path in lower)
            return parent, ",".join(options)
    return "", data
