"""The agent's process: PID 1 of the guest, or an ordinary process for tests and tools.

As PID 1 it never returns and never raises: whatever happens ends in a line of JSON on the console and a powered-off VM,
because a kernel panic would tell the host nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING

from kata.agent import config, init, limits
from kata.agent.log import set_up_logging
from kata.agent.paths import Paths
from kata.errors import KataError
from kata.linux.process import set_child_subreaper
from kata.linux.reboot import power_off
from kata.version import VERSION

if TYPE_CHECKING:
    from kata.agent.reaper import Reaper

log = logging.getLogger(__name__)

_USAGE = "usage: kata-agent [--version] [--server-addr ADDRESS] [--state-dir DIRECTORY]"

_VSOCK_DRIVER = "vmw_vsock_virtio_transport"

#: How long answers may take to leave the VM before it powers off.
_FLUSH_TIMEOUT_S = 0.2
#: Calls of the host in flight. A process takes up to four: its exit, its input and its outputs are waited for.
_MAX_CALLS = 8192


async def serve(settings: config.AgentConfig, paths: Paths, is_init: bool) -> None:
    """Serve the host until the sandbox is destroyed or, outside of a VM, a signal ends it.

    Args:
        settings: of this agent.
        paths: where it keeps things.
        is_init: whether it is PID 1, so that kernel modules, network, clock and /etc are its to change.

    Raises:
        InvalidArgument: the address to listen on, or the policy, is invalid.
        NotFound: there is no such virtio-serial port, or policy.
        OSError: the socket cannot be bound.
    """
    from kata.agent.context import AgentContext
    from kata.agent.devices.find import Finder, no_driver
    from kata.agent.forward import connect
    from kata.agent.oom import OomWatcher
    from kata.agent.policy import Guard, at_start
    from kata.agent.reaper import Reaper
    from kata.agent.reserve import Reserve
    from kata.agent.runtime import Crun
    from kata.agent.sandbox import Sandbox
    from kata.agent.service import AgentService, all_handlers, to_status
    from kata.agent.tracing import Tracing
    from kata.agent.transports import listen
    from kata.agent.warmup import warm_up, warm_up_handler
    from kata.loop.watch import LoopWatch
    from kata.protocols import forward, standby, traces
    from kata.ttrpc import Server, StreamHandler

    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    # QEMU's emulator finds translated code by its address: at another one it translates all of crun anew.
    reaper = Reaper(fixed_addresses=settings.emulated)
    reaper.start()
    oom = OomWatcher()
    if is_init:
        for refused in limits.raise_limits():
            log.warning("the kernel keeps its own limit: %s", refused)
        complaint = await init.load_modules(reaper)
        if complaint:
            log.warning("kernel modules: %s", complaint)
        if settings.server_addr.startswith("vsock:"):
            # The kernel loads the socket family with the first socket, but not its transport.
            await init.load_driver(reaper, _VSOCK_DRIVER)
    else:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
    devices = Finder(settings.hotplug_timeout, partial(init.load_driver, reaper) if is_init else no_driver)
    reserve = Reserve(paths.cgroup)
    if is_init:
        reserve.set_up()
    runtime = Crun(reaper, paths.crun, f"{paths.run}/prespawned")
    agent = AgentContext(paths, reaper, runtime, oom, settings, devices, reserve)
    sandbox = Sandbox(agent, is_init)
    service = AgentService(sandbox, agent, is_init, stopped)
    calls = all_handlers(service)
    calls[forward.SERVICE, forward.CONNECT] = StreamHandler(connect)
    guard = Guard(calls)
    calls.update(guard.handlers())
    # An agent that has much to do must not look like one that hangs.
    server = Server(calls, to_status=to_status, max_calls=_MAX_CALLS, unlimited=["grpc.Health"])
    tracing = Tracing(server)
    calls.update(tracing.handlers())
    sending = None
    if settings.trace:
        tracing.start()
        if settings.server_addr.startswith("vsock:"):
            sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            host = (socket.VMADDR_CID_HOST, traces.PORT)
            sending = asyncio.create_task(tracing.connect(sock, host), name="spans to the host")
    if is_init:
        calls[standby.SERVICE, standby.WARM_UP] = warm_up_handler(server, sandbox, agent)
    if settings.debug_console:
        await _open_console(reaper, settings.debug_console_vport)
    if settings.warm_up and is_init:
        await warm_up(server, sandbox, agent)
    if (policy := at_start(is_init)) is not None:
        guard.set(policy)
    stop_listening = await listen(settings.server_addr, server.serve_connection)
    log.info("listening on %s", settings.server_addr)
    try:
        with LoopWatch() if log.isEnabledFor(logging.DEBUG) else contextlib.nullcontext():
            await stopped.wait()
        tracing.close()
        await asyncio.sleep(_FLUSH_TIMEOUT_S)
    finally:
        await server.close(grace=_FLUSH_TIMEOUT_S)
        stop_listening()
        if sending:
            sending.cancel()
        if sandbox.running:
            await sandbox.destroy()
        oom.close()
        reaper.stop()


async def _open_console(reaper: Reaper, vport: int) -> None:
    """Offer the debug console for as long as the guest runs; without a channel there is none."""
    from kata.agent import console
    from kata.agent.transports import listen

    try:
        await listen(console.address(vport), partial(console.serve, reaper), framed=False)
    except (KataError, OSError) as error:
        log.warning("no debug console: %s", error)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def run_as_init() -> None:
    """Be the guest's PID 1; ends in power-off."""
    try:
        init.prepare()
        settings = config.parse(f"{_read(config.OF_IMAGE)} {_read('/proc/cmdline')}", os.environ)
        set_up_logging(settings.log_level)
        log.info("kata-agent %s", VERSION)
        if settings.unknown:
            log.warning("unknown kernel parameters: %s", " ".join(settings.unknown))
        asyncio.run(serve(settings, Paths(), is_init=True))
    except BaseException as error:
        if not logging.getLogger().handlers:
            set_up_logging("INFO")
        log.critical("the agent failed", exc_info=error)
    finally:
        power_off()


def run_as_process(arguments: list[str]) -> int:
    """Be an ordinary process.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        The exit status: 0, 1 for a failure, 2 for a wrong command line.
    """
    options = {"--server-addr": "", "--state-dir": ""}
    words = iter(arguments)
    for word in words:
        name, separator, value = word.partition("=")
        if word == "--version":
            sys.stdout.write(f"kata-agent {VERSION}\n")
            return 0
        if name not in options:
            sys.stderr.write(f"kata-agent: unknown argument {word}\n{_USAGE}\n")
            return 2
        options[name] = value if separator else next(words, "")
    environment = dict(os.environ)
    if options["--server-addr"]:
        environment["KATA_AGENT_SERVER_ADDR"] = options["--server-addr"]
    try:
        settings = config.parse("", environment)
        set_up_logging(settings.log_level)
        set_child_subreaper()
        paths = Paths.under(options["--state-dir"]) if options["--state-dir"] else Paths()
        asyncio.run(serve(settings, paths, is_init=False))
    except KataError as error:
        sys.stderr.write(f"kata-agent: {error}\n" + (f"{error.hint}\n" if error.hint else ""))
        return 1
    return 0


def main() -> None:
    """Entry point of /usr/bin/kata-agent."""
    if os.getpid() == 1:
        run_as_init()
    else:
        sys.exit(run_as_process(sys.argv[1:]))
