"""The shim's daemon: one process a sandbox, serving containerd's Task service until the sandbox has ended."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket

from kata.protocols.containerd import task_v2_pb2
from kata.runtime.launch.prelaunch import Prelaunch
from kata.runtime.launch.sandbox_vm import Prepared
from kata.runtime.ledger.journal import Ledger
from kata.runtime.sandbox.grpc_status import to_status
from kata.shim.events import Publisher
from kata.shim.log import setup_logging
from kata.shim.params import ShimParams
from kata.shim.task import TaskService
from kata.ttrpc import Server
from kata.ttrpc.typed import handlers

log = logging.getLogger(__name__)

#: Seconds that calls under way get to finish once the sandbox has ended.
_GRACE_S = 1.0
#: containerd asks for a sandbox at once. By now it, or `start`, must have died before anybody knew of this daemon.
_UNASKED_S = 15.0
#: Seconds between two looks whether containerd still knows of the sandbox, and how many have to say no.
_LOOK_S = 3.0
_LOOKS = 2


def run(params: ShimParams, listener_fd: int, ledger: Ledger, prelaunch: Prelaunch | None) -> None:
    """Serve until the sandbox has ended; everything it held has then been given back.

    The caller has entered a mount namespace of its own.
    """
    fcntl.fcntl(listener_fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    become_shim(params)
    try:
        asyncio.run(serve(params, socket.socket(fileno=listener_fd), ledger, prelaunch))
    except BaseException:
        log.exception("the shim of sandbox %s failed", params.sandbox_id)
        ledger.release()
        raise


def become_shim(params: ShimParams) -> None:
    """What a process has to do to itself before it serves a sandbox."""
    setup_logging(params)
    os.chdir("/")
    try:
        # Not fatal without the privilege (CAP_SYS_RESOURCE): the kernel may then choose this process sooner.
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("-998")
    except OSError as error:
        log.debug("cannot protect the shim from the out-of-memory killer: %s", error.strerror)


async def serve(
    params: ShimParams,
    listener: socket.socket,
    ledger: Ledger,
    prepared: Prepared | None = None,
) -> None:
    """Serve containerd until the sandbox has ended, which may take over a machine that is there already."""
    publisher = Publisher(params.events_address, params.namespace)
    service = TaskService(params, ledger, publisher, prepared)
    calls = handlers(task_v2_pb2.DESCRIPTOR.services_by_name["Task"], service)
    # Version 3 of the service has another name and the same messages.
    calls |= {("containerd.task.v3.Task", method): handler for (_, method), handler in calls.items()}
    server = Server(calls, to_status=to_status)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.ended.set)
    loop.call_later(_UNASKED_S, service.end_unless_asked)
    await server.serve_socket(listener)
    publishing = asyncio.create_task(publisher.run())
    looking = asyncio.create_task(_end_if_forgotten(server, service))
    try:
        await service.ended.wait()
    finally:
        await service.close()
        await server.close(_GRACE_S)
        await publisher.close(_GRACE_S)
        for task in (publishing, looking):
            task.cancel()
        await asyncio.gather(publishing, looking, return_exceptions=True)
        log.info("the shim of sandbox %s ends", params.sandbox_id)


async def _end_if_forgotten(server: Server, service: TaskService) -> None:
    """containerd may die before it shuts a shim down, and does not make up for it when it runs again."""
    seen = 0
    while seen < _LOOKS:
        await asyncio.sleep(_LOOK_S)
        seen = seen + 1 if service.forgotten(connected=server.connected > 0) else 0
    log.warning("containerd has forgotten this sandbox, which ends")
    service.ended.set()
