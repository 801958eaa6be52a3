"""The first steps of a daemon: it prelaunches the sandbox's VM, and only then imports what it serves with.

Imports nothing slow.
"""

from __future__ import annotations

from kata.runtime.launch.mount_namespace import enter_mount_namespace
from kata.runtime.launch.prelaunch import prelaunch
from kata.runtime.ledger.journal import Ledger
from kata.shim.config import config_if_valid
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
    config = config_if_valid(params.options)
    prelaunched = prelaunch(params.sandbox_id, params.bundle, config, ledger) if config else None
    load_asyncio()
    leave_out_pure_protobuf()
    from kata.shim import daemon

    daemon.run(params, listener_fd, ledger, prelaunched, config)
