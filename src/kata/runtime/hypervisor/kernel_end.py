"""Why a guest's kernel has given up, as its console has it. Pure.

The kernel names the reason before a trace of many lines, so the last lines alone do not have it.
"""

from __future__ import annotations

import re

#: Lines in which the reason is looked for.
CONSOLE_LINES = 200
#: What dm-verity writes of a block that does not match its hash (drivers/md/dm-verity-target.c).
_DAMAGE = re.compile(r"device-mapper: verity: .{1,200}")
_PANIC = re.compile(r"Kernel panic - not syncing: .{1,200}")


def why_kernel_ended(console: str) -> str:
    """The reason in words, for the end of a message; "" if the kernel has named none.

    Args:
        console: lines of the guest's console, safe to show.
    """
    if damage := _DAMAGE.search(console):
        return f"its root image is damaged, or has been changed: {damage[0].strip()}"
    if panic := _PANIC.search(console):
        return f"its kernel could not go on: {panic[0].strip()}"
    return ""
