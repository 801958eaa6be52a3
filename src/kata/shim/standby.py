"""A process in standby: it has a VM ready, and becomes the shim of the sandbox that `start` hands over to it.

It is forked by the pool (`kata.shim.pool`) and dies with it until it has a sandbox; then it is a shim like any other,
and ends with its sandbox.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import struct

from kata.errors import KataError
from kata.linux.process import set_parent_death_signal
from kata.runtime.config.settings import Config
from kata.runtime.launch.mount_namespace import enter_mount_namespace
from kata.runtime.launch.standby import Standby, prepare
from kata.runtime.ledger.journal import STATE_ROOT, Ledger, claim
from kata.runtime.ledger.names import state_name
from kata.shim import handover
from kata.shim.config import config_if_valid
from kata.shim.daemon import become_shim, serve
from kata.shim.params import ShimParams

log = logging.getLogger(__name__)

#: What a process in standby writes to the pool, one byte each.
IS_READY, IS_TAKEN = b"r", b"t"
#: The signals that end one. Blocked until it handles them.
END_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Seconds for `start` to send what it has connected for.
_MESSAGE_TIMEOUT_S = 2.0
#: Namespaces that a shim shares with the `start` that makes it (/proc/PID/ns), besides the root directory.
_NAMESPACES = ("mnt", "net", "pid", "ipc", "uts", "user")


def surroundings(process: str = "self") -> tuple[object, ...]:
    """What has to be equal for one process to stand in for another: root directory and namespaces. Raises OSError."""
    root = os.stat(f"/proc/{process}/root")
    namespaces = tuple(os.readlink(f"/proc/{process}/ns/{name}") for name in _NAMESPACES)
    return root.st_dev, root.st_ino, *namespaces


def run(config: Config, directory: str, pool: int, tell: int, home: tuple[object, ...]) -> None:
    """Be in standby, then be a shim; returns when that has ended. The caller has blocked `END_SIGNALS`.

    Args:
        config: of the VM.
        directory: the state directory; does not exist yet.
        pool: the pool's process id.
        tell: descriptor of a pipe to the pool; owned from now on.
        home: the pool's `surroundings`.
    """
    set_parent_death_signal(signal.SIGTERM)
    if os.getppid() != pool:
        return  # the pool died before that took effect
    os.setsid()
    ledger = claim(directory)
    try:
        enter_mount_namespace(ledger.directory)
        asyncio.run(_stand_by(config, ledger, tell, home))
    finally:
        ledger.release()


async def _stand_by(config: Config, ledger: Ledger, tell: int, home: object) -> None:
    asked_to_end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in END_SIGNALS:
        loop.add_signal_handler(number, asked_to_end.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
    preparing = asyncio.create_task(prepare(config, ledger))
    ending = asyncio.create_task(asked_to_end.wait())
    await asyncio.wait({preparing, ending}, return_when=asyncio.FIRST_COMPLETED)
    if not preparing.done():
        preparing.cancel()
    try:
        standby = await preparing
    except asyncio.CancelledError:
        return
    except KataError as error:
        log.error("no VM in standby: %s", error)
        return
    try:
        taken = await _wait_for_start(standby, ending, tell, home)
    except BaseException:
        await standby.discard()
        raise
    if taken is None:
        await standby.discard()
        return
    ending.cancel()
    params, listener, sandbox_ledger = taken
    set_parent_death_signal(0)
    os.write(tell, IS_TAKEN)
    os.close(tell)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)  # the terminal that the pool was started in is not the sandbox's
    os.close(null)
    try:
        await serve(params, listener, sandbox_ledger, standby, config_if_valid(params.options))
    finally:
        sandbox_ledger.release()


async def _wait_for_start(
    standby: Standby, ending: asyncio.Task[bool], tell: int, home: object
) -> tuple[ShimParams, socket.socket, Ledger] | None:
    """What the first `start` hands over; None if the VM has ended, or this process is to end."""
    loop = asyncio.get_running_loop()
    dying = asyncio.create_task(standby.vm.wait())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.setblocking(False)
        path = standby.directory / handover.SOCKET
        mask = os.umask(0o077)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen()
        os.write(tell, IS_READY)
        try:
            while True:
                connecting = asyncio.ensure_future(loop.sock_accept(listener))
                await asyncio.wait({connecting, dying, ending}, return_when=asyncio.FIRST_COMPLETED)
                if not connecting.done():
                    connecting.cancel()
                    if dying.done():
                        log.error("the VM in standby has ended: %s", dying.result().output)
                    return None
                peer, _ = connecting.result()
                with peer:
                    if taken := _take(peer, home):
                        return taken
        finally:
            path.unlink(missing_ok=True)
            dying.cancel()


def _take(peer: socket.socket, home: object) -> tuple[ShimParams, socket.socket, Ledger] | None:
    """Receive a sandbox from a `start`; None if it is refused. Blocks for _MESSAGE_TIMEOUT_S at most."""
    peer.settimeout(_MESSAGE_TIMEOUT_S)
    received: list[int] = []
    try:
        pid, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user != 0 or surroundings(str(pid)) != home:
            return None
        peer.send(handover.READY)
        data, received, flags, _ = socket.recv_fds(peer, handover.MAX_MESSAGE, 2)
        if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(received) != 2:
            return None
        params = ShimParams.decode(data)
        for fd in received:
            os.set_inheritable(fd, False)
        peer.send(handover.ACCEPTED)
        become_shim(params)  # at once: what fails from here on belongs into containerd's log
    except (OSError, ValueError) as error:
        log.info("cannot take over a sandbox from `start`: %s", error)
        for fd in received:
            os.close(fd)
        return None
    os.environ.clear()
    os.environ.update(params.environment)
    ledger = Ledger.adopt(f"{STATE_ROOT}/{state_name(params.sandbox_id, params.namespace)}", received[1])
    return params, socket.socket(fileno=received[0]), ledger
