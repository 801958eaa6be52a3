"""The first steps of a daemon, before it has loaded what it serves with: QEMU starts, then the rest is imported.

Imports nothing that takes long to load.
"""

from __future__ import annotations

from pathlib import Path

from kata.errors import KataError
from kata.runtime.config.loader import Loaded, load
from kata.runtime.launch.mount_namespace import enter_mount_namespace
from kata.runtime.launch.prelaunch import Prelaunch, prelaunch
from kata.runtime.ledger.journal import Ledger
from kata.shim.bootstrap import runtime_config
from kata.shim.lean import leave_out_pure_protobuf, load_asyncio
from kata.shim.params import ShimParams


def run(settings: ShimParams, listener_fd: int, ledger: Ledger) -> None:
    """Be the shim of a sandbox; returns when that has ended and everything it held has been given back."""
    try:
        enter_mount_namespace(ledger.directory)
        ahead = _prelaunch(settings, ledger)
        load_asyncio()
        leave_out_pure_protobuf()
        from kata.shim import daemon
    except BaseException:
        ledger.release()
        raise
    daemon.run(settings, listener_fd, ledger, ahead)


def _prelaunch(settings: ShimParams, ledger: Ledger) -> Prelaunch | None:
    try:
        config = load_config(settings.options).config
    except KataError:
        return None  # told when containerd asks for the sandbox, and has somewhere to put it
    return prelaunch(settings.sandbox_id, settings.bundle, config, ledger)


def load_config(options: bytes) -> Loaded:
    """The configuration that the runtime's options choose. Raises what `kata.runtime.config.loader.load` does."""
    path, body = runtime_config(options)
    if path:
        return load(Path(path))
    return load(body=body or None)
