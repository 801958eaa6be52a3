"""Overlay options that fit: mount(2) takes one page of them, and an image of many layers names more than that.

As containerd does: the lower directories lie side by side, so they are named relative to their common parent, and the
mount is made from there.
"""

from __future__ import annotations

import os

#: Bytes of mount data that the kernel copies, less the final zero byte (one page).
MOUNT_DATA_MAX = 4095

_LOWER = "lowerdir="


def compact(data: str) -> tuple[str, str]:
    """Shorten overlay options if they are too long.

    Returns:
        (directory, data): the directory that the mount has to be made from, "" for any, and the options.
    """
    if len(os.fsencode(data)) <= MOUNT_DATA_MAX:
        return "", data
    options = data.split(",")
    for index, option in enumerate(options):
        lower = option.removeprefix(_LOWER).split(":")
        if option.startswith(_LOWER) and len(lower) > 1:
            parent = os.path.commonpath(lower)
            options[index] = _LOWER + ":".join(os.path.relpath(path, parent) for path in lower)
            return parent, ",".join(options)
    return "", data
