"""The first steps of a daemon: it prelaunches the sandbox's VM, and only then imports what it serves with.

Imports nothing slow.
"""

from __future__ import annotations

from kata.errors import KataError
from kata.runtime.launch.mount_namespace import enter_mount_namespace
from kata.runtime.launch.prelaunch import Prelaunch, prelaunch
from kata.runtime.ledger.journal import Ledger
from kata.shim.config import load_config
from kata.shim.imports import leave_out_pure_protobuf, load_asyncio
from kata.shim.params import ShimParams


def run(params: ShimParams, listener_fd: int, ledger: Ledger) -> None:
    """Be the shim of a sandbox; returns when that has ended and everything it held has been released.

    Args:
        params: what `start` tells.
        listener_fd: descriptor of the bound socket to serve on; owned from now on.
        ledger: the sandbox's; released at the end.

    Raises:
        FailedPrecondition: a mount namespace cannot be made. The ledger is then still the caller's, as after any error.
    """
    enter_mount_namespace(ledger.directory)
    prelaunched = _prelaunch(params, ledger)
    load_asyncio()
    leave_out_pure_protobuf()
    from kata.shim import daemon

    daemon.run(params, listener_fd, ledger, prelaunched)


def _prelaunch(params: ShimParams, ledger: Ledger) -> Prelaunch | None:
    try:
        config = load_config(params.options).config
    except KataError:
        return None  # reported when containerd asks for the sandbox, and has somewhere to put it
    return prelaunch(params.sandbox_id, params.bundle, config, ledger)
