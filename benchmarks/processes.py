"""Which processes a sandbox has, and how much memory they use, read from /proc (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from kata.runtime.ledger.journal import STATE_ROOT
from kata.runtime.ledger.names import split
from kata.runtime.ledger.processes import MARKER

#: What a process is, by a part of the path of its executable or of its first arguments.
_KINDS = (
    ("qemu-system", "qemu"),
    ("virtfs-proxy-helper", "file server"),
    ("ld-linux-", "file server"),  # which runs virtiofsd
    ("containerd-shim", "shim"),
)


def kind_of(command: list[str]) -> str:
    """Return what a process of a sandbox is, by its arguments: "qemu", "file server", "shim" or "container"."""
    for part, kind in _KINDS:
        # The arguments of a shim in Python begin with the interpreter and an option of it.
        if any(part in os.path.basename(word) for word in command[:3]):
            return kind
    return "container"


def belonging(shims: Mapping[int, str], parents: Mapping[int, int], marked: Mapping[int, str]) -> dict[str, list[int]]:
    """Return all processes of each sandbox: its shim, the shim's descendants, and those with the sandbox's marker.

    Args:
        shims: the sandbox of each shim, by process id.
        parents: the parent of each process.
        marked: the sandbox in the environment of each process that has the marker.
    """
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found: dict[str, list[int]] = {}
    for shim, sandbox in shims.items():
        pids = [shim]
        for pid in pids:
            pids += children.get(pid, ())
        found[sandbox] = pids
    for pid, sandbox in marked.items():
        if sandbox in found and pid not in found[sandbox]:
            found[sandbox].append(pid)
    return found


def processes(shims: Mapping[int, str]) -> dict[str, list[int]]:
    """Return all processes of each sandbox of a shim; see `belonging`."""
    prefix = f"{MARKER}={STATE_ROOT}/".encode()
    parents: dict[int, int] = {}
    marked: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path(f"/proc/{entry}/stat").read_bytes()
            environment = Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:
            continue  # it has just ended
        parents[int(entry)] = int(stat.rpartition(b")")[2].split()[1])
        for variable in environment.split(b"\0"):
            if variable.startswith(prefix):
                marked[int(entry)] = split(variable.removeprefix(prefix).decode(errors="replace"))[0]
    return belonging(shims, parents, marked)


def pss_mib(pid: int) -> float:
    """Return a process's proportional set size in MiB: a page that several processes map counts in part."""
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def rss_mib(pid: int) -> float:
    """Return a process's resident set size in MiB."""
    return _field(Path(f"/proc/{pid}/status"), "VmRSS:")


def pss_by_kind(pids: Iterable[int]) -> dict[str, float]:
    """Return the proportional set size in MiB of a sandbox's processes, by kind."""
    total: dict[str, float] = {}
    for pid in pids:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        kind = kind_of(command)
        total[kind] = total.get(kind, 0.0) + pss_mib(pid)
    return total


def _field(path: Path, name: str) -> float:
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise ValueError(f"{path} has no {name}")
