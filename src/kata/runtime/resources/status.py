"""What a running sandbox has, for whoever looks: a small file in its state directory, and the sum of all."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from kata.linux import atomic_file
from kata.runtime.ledger.journal import STATE_ROOT
from kata.runtime.resources.host_cgroup import CgroupPaths
from kata.runtime.resources.sizing import Size

_FILE = "resources.json"
_LIMIT = 4096


@dataclass(frozen=True)
class Status:
    """One sandbox.

    Attributes:
        size: its machine's, now.
        cgroup: its control group on the host, "" if it has none.
    """

    sandbox_id: str
    size: Size
    cgroup: str


def write_status(directory: str, size: Size, groups: CgroupPaths | None) -> None:
    """Say what the sandbox has now. A full disk costs only this."""
    content = {"vcpus": size.vcpus, "memory_mib": size.memory_mib, "cgroup": groups.sandbox if groups else ""}
    try:
        atomic_file.write(os.path.join(directory, _FILE), json.dumps(content))
    except OSError:
        return


def read_all(root: str = STATE_ROOT) -> list[Status]:
    """All sandboxes that run, by their ids."""
    found = []
    for name in sorted(os.listdir(root)) if os.path.isdir(root) else ():
        try:
            with open(os.path.join(root, name, _FILE), encoding="utf-8") as file:
                content = json.loads(file.read(_LIMIT))
            size = Size(int(content["vcpus"]), int(content["memory_mib"]))
            found.append(Status(name, size, str(content["cgroup"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # in standby, starting, or just ended
    return found
