"""What a running sandbox has, for other processes to read: a small file in its state directory."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from kata.linux import atomic_file
from kata.runtime.ledger.journal import STATE_ROOT
from kata.runtime.resources.host_cgroup import CgroupPaths
from kata.runtime.resources.sizing import Size

_FILE = "resources.json"
_MAX_SIZE = 4096


@dataclass(frozen=True)
class Status:
    """One sandbox.

    Attributes:
        sandbox: the name of its state directory.
        size: its VM's, now.
        cgroup: path of its host cgroup, "" if it has none.
    """

    sandbox: str
    size: Size
    cgroup: str


def write_status(directory: str, size: Size, cgroup: CgroupPaths | None) -> None:
    """Write down what a sandbox has now. Renamed into place; on a full disk the file is lost, the sandbox is not."""
    content = {"vcpus": size.vcpus, "memory_mib": size.memory_mib, "cgroup": cgroup.sandbox if cgroup else ""}
    try:
        atomic_file.write(os.path.join(directory, _FILE), json.dumps(content))
    except OSError:
        return


def read_all(root: str = STATE_ROOT) -> list[Status]:
    """The running sandboxes, ordered by name."""
    found = []
    for name in sorted(os.listdir(root)) if os.path.isdir(root) else ():
        try:
            with open(os.path.join(root, name, _FILE), encoding="utf-8") as file:
                content = json.loads(file.read(_MAX_SIZE))
            size = Size(int(content["vcpus"]), int(content["memory_mib"]))
            found.append(Status(name, size, str(content["cgroup"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # in standby, starting, or just ended
    return found
