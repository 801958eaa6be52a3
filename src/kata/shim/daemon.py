"""The shim's daemon: one process per sandbox, which serves containerd's Task service until the sandbox has ended."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
from time import perf_counter
from typing import TYPE_CHECKING

from kata.log_fields import ForContainer
from kata.loop.watch import LoopWatch
from kata.metrics.durations import Durations
from kata.protocols.containerd import task_v2_pb2
from kata.runtime import tracing
from kata.runtime.config.settings import Config, RuntimeConfig
from kata.runtime.launch.prelaunch import Prelaunch
from kata.runtime.launch.sandbox_vm import Prepared
from kata.runtime.ledger.journal import Ledger
from kata.runtime.sandbox.grpc_status import to_status
from kata.shim.events import Publisher
from kata.shim.log import keep_log, setup_logging
from kata.shim.params import ShimParams
from kata.shim.task import TaskService
from kata.ttrpc import Server
from kata.ttrpc.observer import Done, Observer
from kata.ttrpc.typed import handlers, snake_case

if TYPE_CHECKING:
    from kata.shim.tracing import TaskTracing

log = logging.getLogger(__name__)

#: Seconds for calls in flight to finish once the sandbox has ended.
_GRACE_S = 1.0
#: Seconds for the first request. containerd makes it at once, unless it or `start` died before it knew of this daemon.
_FIRST_REQUEST_TIMEOUT_S = 15.0
#: When what the end needs is imported: not beside a start, and before somebody removes or upgrades the package.
_LOAD_RELEASE_S = 5.0
#: Seconds between two checks that containerd still knows of the sandbox, and how many in a row have to fail.
_CHECK_INTERVAL_S = 3.0
_FAILED_CHECKS = 2


def run(
    params: ShimParams, listener_fd: int, ledger: Ledger, prelaunch: Prelaunch | None, config: Config | None
) -> None:
    """Serve until the sandbox has ended; everything it held has then been released.

    The caller has entered a mount namespace of its own.

    Args:
        params: what `start` tells.
        listener_fd: descriptor of the bound socket; owned from now on.
        ledger: the sandbox's; released at the end, but not after an error.
        prelaunch: a VM that the sandbox may take over.
        config: as the runtime's options name it; None if it is invalid.
    """
    fcntl.fcntl(listener_fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    become_shim(params)
    asyncio.run(serve(params, socket.socket(fileno=listener_fd), ledger, prelaunch, config))


def become_shim(params: ShimParams) -> None:
    """Set up logging, working directory and OOM score for a process that serves a sandbox."""
    setup_logging(params)
    os.chdir("/")
    try:
        # Without CAP_SYS_RESOURCE the kernel may choose this process earlier, which is not fatal.
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("-998")
    except OSError as error:
        log.debug("cannot protect the shim from the OOM killer: %s", error.strerror)


async def serve(
    params: ShimParams,
    listener: socket.socket,
    ledger: Ledger,
    prepared: Prepared | None = None,
    config: Config | None = None,
) -> None:
    """Serve containerd until the sandbox has ended.

    Args:
        params: what `start` tells.
        listener: bound; closed at the end.
        ledger: the sandbox's; released at the end.
        prepared: a VM that the sandbox takes over if it is what it needs.
        config: says whether this process is traced.
    """
    end_log = keep_log(ledger.directory, params.sandbox_id)
    publisher = Publisher(params.events_address, params.namespace)
    service = TaskService(params, ledger, publisher, prepared)
    calls = handlers(task_v2_pb2.DESCRIPTOR.services_by_name["Task"], ForContainer(service, "id"))
    # Version 3 of the service has another name and the same messages.
    calls |= {("containerd.task.v3.Task", method): handler for (_, method), handler in calls.items()}
    server = Server(calls, to_status=to_status)
    server.observers.append(_counted_in(service.calls))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.ended.set)
    loop.call_later(_FIRST_REQUEST_TIMEOUT_S, service.end_unless_asked)
    loop.call_later(_LOAD_RELEASE_S, ledger.load_release)
    traced = _trace(server, params, config.runtime) if config and config.runtime.enable_tracing else None
    await server.serve_socket(listener)
    publishing = asyncio.create_task(publisher.run())
    checking = asyncio.create_task(_end_if_forgotten(server, service))
    try:
        with LoopWatch() if log.isEnabledFor(logging.DEBUG) else contextlib.nullcontext():
            await service.ended.wait()
    finally:
        await service.close()
        await server.close(_GRACE_S)
        await publisher.close(_GRACE_S)
        if traced:
            traced.close()
            await tracing.turn_off()
        for task in (publishing, checking):
            task.cancel()
        await asyncio.gather(publishing, checking, return_exceptions=True)
        log.info("the shim of sandbox %s exits", params.sandbox_id)
        end_log()


def _trace(server: Server, params: ShimParams, config: RuntimeConfig) -> TaskTracing:
    # Imported on first use: it needs OpenTelemetry.
    from kata.shim.tracing import TaskTracing, annotations_of

    tracer = tracing.turn_on(config, params.sandbox_id, params.namespace, annotations_of(params))
    traced = TaskTracing(tracer, params.begun)
    server.observers.append(traced)
    return traced


def _counted_in(durations: Durations) -> Observer:
    """Count how long calls take."""

    def observe(service: str, method: str, payload: bytes, metadata: dict[str, str]) -> Done:
        begin = perf_counter()
        return lambda code, text: durations.add(snake_case(method), perf_counter() - begin)

    return observe


async def _end_if_forgotten(server: Server, service: TaskService) -> None:
    """End a shim that containerd, which may die before it shuts it down, no longer knows when it runs again."""
    failed = 0
    while failed < _FAILED_CHECKS:
        await asyncio.sleep(_CHECK_INTERVAL_S)
        failed = failed + 1 if service.forgotten(connected=server.connected > 0) else 0
    log.warning("containerd no longer knows of this sandbox: it is ended")
    service.ended.set()
