"""The agent's process: PID 1 of a virtual machine, or an ordinary process for tests and tools.

As PID 1 it never returns and never raises: whatever happens ends in a line of JSON on the console and in the machine
being switched off, because a kernel panic would tell the host nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

from kata.agent import config, log, system
from kata.agent.paths import Paths
from kata.errors import KataError
from kata.linux.process import set_child_subreaper
from kata.linux.reboot import power_off
from kata.version import VERSION

if TYPE_CHECKING:
    from kata.agent.reaper import Reaper

_log = logging.getLogger(__name__)

_USAGE = "usage: kata-agent [--version] [--server-addr ADDRESS] [--state-dir DIRECTORY]"

_VSOCK_DRIVER = "vmw_vsock_virtio_transport"

# How long answers may take to leave the machine before it is switched off; seconds.
_LAST_WORDS = 0.2


async def serve(settings: config.AgentConfig, paths: Paths, owns_machine: bool) -> None:
    """Serve the host until the sandbox is destroyed, or, outside of a virtual machine, a signal ends it."""
    from kata.agent.container import Machinery
    from kata.agent.devices.find import Finder, no_driver
    from kata.agent.forward import connect
    from kata.agent.oom import OomWatcher
    from kata.agent.reaper import Reaper
    from kata.agent.runtime import Crun
    from kata.agent.sandbox import Sandbox
    from kata.agent.service import AgentService, all_handlers, to_status
    from kata.agent.transports import listen
    from kata.agent.warmup import warm_up, warm_up_handler
    from kata.protocols import forward, standby
    from kata.ttrpc import Server, StreamHandler

    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    # An emulator finds what it has translated by its address: at another one it translates all of crun anew.
    reaper = Reaper(fixed_addresses=settings.emulated)
    reaper.start()
    oom = OomWatcher()
    if owns_machine:
        complaint = await system.load_modules(reaper)
        if complaint:
            _log.warning("kernel modules: %s", complaint)
        if settings.server_addr.startswith("vsock:"):
            # The kernel loads sockets of that kind with the first one, but nothing that carries them.
            await system.load_driver(reaper, _VSOCK_DRIVER)
    else:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
    devices = Finder(settings.hotplug_timeout, partial(system.load_driver, reaper) if owns_machine else no_driver)
    machinery = Machinery(paths, reaper, Crun(reaper, paths.crun, f"{paths.run}/ahead"), oom, settings, devices)
    sandbox = Sandbox(machinery, owns_machine)
    service = AgentService(sandbox, machinery, owns_machine, stopped)
    calls = all_handlers(service)
    calls[forward.SERVICE, forward.CONNECT] = StreamHandler(connect)
    server = Server(calls, to_status=to_status)
    if owns_machine:
        calls[standby.SERVICE, standby.WARM_UP] = warm_up_handler(server, sandbox, machinery)
    if settings.debug_console:
        await _open_console(reaper, settings.debug_console_vport)
    if settings.warm_up and owns_machine:
        await warm_up(server, sandbox, machinery)
    stop_listening = await listen(settings.server_addr, server.serve_connection)
    _log.info("listening on %s", settings.server_addr)
    try:
        await stopped.wait()
        await asyncio.sleep(_LAST_WORDS)
    finally:
        await server.close(grace=_LAST_WORDS)
        stop_listening()
        if sandbox.running:
            await sandbox.destroy()
        oom.close()
        reaper.stop()


async def _open_console(reaper: Reaper, vport: int) -> None:
    """Offer the debug console. It listens as long as the machine runs; without a channel there is none."""
    from kata.agent import console
    from kata.agent.transports import listen

    try:
        await listen(console.address(vport), partial(console.serve, reaper), framed=False)
    except (KataError, OSError) as error:
        _log.warning("no debug console: %s", error)


def run_machine() -> None:
    """PID 1's way."""
    try:
        system.prepare()
        with open("/proc/cmdline", encoding="utf-8", errors="replace") as file:
            settings = config.parse(file.read(), os.environ)
        log.set_up(settings.log_level)
        _log.info("kata-agent %s", VERSION)
        if settings.unknown:
            _log.warning("unknown kernel parameters: %s", " ".join(settings.unknown))
        asyncio.run(serve(settings, Paths(), owns_machine=True))
    except BaseException as error:
        if not logging.getLogger().handlers:
            log.set_up("INFO")
        _log.critical("the agent cannot go on", exc_info=error)
    finally:
        power_off()


def run_process(arguments: list[str]) -> int:
    """An ordinary process's way; returns the exit status."""
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
        log.set_up(settings.log_level)
        set_child_subreaper()
        paths = Paths.under(options["--state-dir"]) if options["--state-dir"] else Paths()
        asyncio.run(serve(settings, paths, owns_machine=False))
    except KataError as error:
        sys.stderr.write(f"kata-agent: {error}\n" + (f"{error.hint}\n" if error.hint else ""))
        return 1
    return 0


def main() -> None:
    """Entry point of /usr/bin/kata-agent."""
    if os.getpid() == 1:
        run_machine()
    else:
        sys.exit(run_process(sys.argv[1:]))
