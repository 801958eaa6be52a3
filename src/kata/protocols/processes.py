"""This project's own RPCs on processes, for what Kata's protocol cannot ask. Another agent answers with UNIMPLEMENTED.

The request is a WaitProcessRequest, which names a process or a container. The response is empty, or the list.
"""

from __future__ import annotations

from collections.abc import Iterable

from kata.errors import Unavailable

SERVICE = "kata.Processes"
#: No Linux has a process of a higher id (PID_MAX_LIMIT).
MAX_PID = 1 << 22
_MAX_DIGITS = len(str(MAX_PID))
#: Answered when all that the process's streams held at the time of the call has been read.
DRAINED = "Drained"
#: Closes the reading ends: who still writes gets SIGPIPE.
RELEASE = "Release"
#: The processes of a container.
LIST = "List"


def encode_list(processes: Iterable[tuple[int, str | None]]) -> bytes:
    """The response of LIST.

    Args:
        processes: ids in the container's pid namespace, each with the exec id of one that the host has started, "" for
            the init process, and None for any other.
    """
    return "".join(f"{pid}\n" if name is None else f"{pid} {name}\n" for pid, name in processes).encode()


def parse_list(response: bytes) -> list[tuple[int, str | None]]:
    """The reverse of `encode_list`.

    Raises:
        Unavailable: it is no list.
    """
    found: list[tuple[int, str | None]] = []
    for line in response.decode("ascii", "replace").splitlines():
        pid, named, name = line.partition(" ")
        # Of thousands of digits Python makes no number at all.
        if not pid.isdecimal() or len(pid) > _MAX_DIGITS or not 0 < int(pid) <= MAX_PID:
            raise Unavailable(f"the guest's list of processes has the id {pid[:20]!r}")
        found.append((int(pid), name if named else None))
    return found
