"""The guest as a whole: its details, its entropy, its clock, and bringing hot-plugged vCPUs and memory online."""

from __future__ import annotations

import asyncio
import fcntl
import glob
import os
import random
import struct
import time
from collections.abc import Iterable

from kata.errors import DeadlineExceeded, InvalidArgument
from kata.loop.off import off_loop
from kata.protocols import agent_pb2
from kata.version import VERSION

_MEMORY = "/sys/devices/system/memory"
_CPUS = "/sys/devices/system/cpu"

# random(4): adds entropy together with a count of its bits; makes the generator use it at once.
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_MAX_SEED = 4096

_POLL_S = 0.05

# How long a request may take from the host to here.
_MAX_DELAY_NS = 250_000_000


def details(
    request: agent_pb2.GuestDetailsRequest, storage_handlers: Iterable[str], init_daemon: bool
) -> agent_pb2.GuestDetailsResponse:
    """Answer GetGuestDetails.

    Args:
        request: says whether to include memory block size and probing.
        storage_handlers: names of the storage drivers.
        init_daemon: whether the agent is PID 1.
    """
    response = agent_pb2.GuestDetailsResponse()
    if request.mem_block_size and os.path.exists(f"{_MEMORY}/block_size_bytes"):
        with open(f"{_MEMORY}/block_size_bytes", encoding="ascii") as file:
            response.mem_block_size_bytes = int(file.read(), 16)
    if request.mem_hotplug_probe:
        response.support_mem_hotplug_probe = os.path.exists(f"{_MEMORY}/probe")
    agent = response.agent_details
    agent.version = VERSION
    agent.init_daemon = init_daemon
    agent.storage_handlers.extend(storage_handlers)
    agent.supports_seccomp = os.path.exists("/proc/sys/kernel/seccomp")
    return response


def reseed(data: bytes) -> None:
    """Reseed the random generators of kernel and Python, which a restored guest shares with its template (random(4)).

    Raises:
        InvalidArgument: no data, or more than 4 KiB.
        OSError: the kernel refuses.
    """
    if not 0 < len(data) <= _MAX_SEED:
        raise InvalidArgument(f"invalid seed of {len(data)} bytes (1 to {_MAX_SEED})")
    fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _RNDADDENTROPY, struct.pack("ii", len(data) * 8, len(data)) + data)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)
    random.seed()


def set_time(seconds: int, microseconds: int) -> None:
    """Set the clock to the host's time of the request.

    A clock that is ahead of it by less than a request's delay is not changed: it was set by an earlier, faster request.
    So a host that sets the time repeatedly gets the best of its attempts, and no step backwards.

    Args:
        seconds: since 1970.
        microseconds: of the second.

    Raises:
        InvalidArgument: it is not a time.
        OSError: the kernel refuses.
    """
    if seconds < 0 or not 0 <= microseconds < 1_000_000:
        raise InvalidArgument(f"invalid time: {seconds} s, {microseconds} µs")
    told = seconds * 10**9 + microseconds * 1000
    if not 0 <= time.time_ns() - told < _MAX_DELAY_NS:
        time.clock_settime_ns(time.CLOCK_REALTIME, told)


async def online(cpus: int, memory: bool, timeout: float) -> None:
    """Bring hot-plugged vCPUs and memory online (Documentation/core-api/cpu_hotplug.rst, memory-hotplug.rst).

    Args:
        cpus: how many vCPUs to bring online.
        memory: whether to take all new memory, too; without vCPUs it is what is waited for.
        timeout: seconds that they may still take to appear; with 0 it is no error if there is no new memory.

    Raises:
        DeadlineExceeded: fewer vCPUs, or no memory, appeared in time.
        OSError: the kernel refuses.
    """
    deadline = time.monotonic() + timeout
    missing = cpus - await off_loop(_online_cpus, cpus)
    while missing:
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(f"{missing} of {cpus} new vCPUs did not appear within {timeout:g} s")
        await asyncio.sleep(_POLL_S)
        missing -= await off_loop(_online_cpus, missing)
    taken = 0
    while memory:
        # One device is several blocks, which appear one after the other.
        new = await off_loop(_online_memory)
        if not new and (taken or cpus or not timeout):
            break
        taken += new
        if not taken and time.monotonic() >= deadline:
            raise DeadlineExceeded(f"no new memory appeared within {timeout:g} s")
        await asyncio.sleep(_POLL_S)


def _online_cpus(wanted: int) -> int:
    done = 0
    for path in sorted(glob.glob(f"{_CPUS}/cpu[0-9]*/online")):
        if done >= wanted:
            break
        if _read(path) == "0":
            _write(path, "1")
            done += 1
    return done


def _online_memory() -> int:
    done = 0
    for path in glob.glob(f"{_MEMORY}/memory[0-9]*/state"):
        if _read(path) == "offline":
            try:
                # Movable, so that it can be unplugged again.
                _write(path, "online_movable")
            except OSError:
                _write(path, "online")
            done += 1
    return done


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
