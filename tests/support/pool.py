"""`kata factory serve` as a child process, for tests and the benchmark."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kata.runtime.ledger.journal import STATE_ROOT
from kata.shim.handover import PREFIX, SOCKET
from tests.support.waiting import eventually

_SERVE = "import sys; from kata.cli.main import invoke; sys.exit(invoke(['factory', 'serve', *sys.argv[1:]]))"
#: The first one may have to make the template.
_READY_S = 120.0
_END_S = 20.0
#: For tests that must see a process as soon as it exists.
_CHILD_POLL_S = 0.0005


@contextmanager
def pool(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A pool of the configured size; afterwards no VM is in standby any more.

    Args:
        arguments: of the command.

    Raises:
        DeadlineExceeded: a VM still is.
    """
    command = [sys.executable, "-c", _SERVE, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(_END_S)
        eventually(standbys, "no VM in standby any more", lambda left: not left, within_s=_END_S)


def standbys() -> list[Path]:
    """Return the state directories of VMs in standby, and of those that were until a sandbox took them."""
    return list(Path(STATE_ROOT).glob(f"{PREFIX}*"))


def ready() -> list[Path]:
    """Return the state directories of VMs that a sandbox can take."""
    return [directory for directory in standbys() if (directory / SOCKET).exists()]


def wait_ready() -> Path:
    """Wait for a VM that a sandbox can take; return its state directory.

    Raises:
        DeadlineExceeded: none is ready in time.
    """
    return eventually(ready, "a VM in standby", within_s=_READY_S)[0]


def children(pid: int) -> list[int]:
    """Wait until a pool has child processes; return their ids.

    Raises:
        DeadlineExceeded: it has none in time.
    """
    made = Path(f"/proc/{pid}/task/{pid}/children").read_text
    return [int(child) for child in eventually(made, "a process of the pool", poll_s=_CHILD_POLL_S).split()]
