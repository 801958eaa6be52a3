"""The guest machine itself: what it is, its randomness, its clock, processors and memory added while it runs."""

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
from kata.protocols import agent_pb2
from kata.version import VERSION

_MEMORY = "/sys/devices/system/memory"
_CPUS = "/sys/devices/system/cpu"

# random(4): adds entropy together with a count of its bits; makes the generator use it at once.
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_MAX_SEED = 4096

_ONLINE_PAUSE = 0.05

# What a request of the host's may take on its way.
_MAX_DELAY_NS = 250_000_000


def details(
    request: agent_pb2.GuestDetailsRequest, storage_handlers: Iterable[str], init_daemon: bool
) -> agent_pb2.GuestDetailsResponse:
    """What this guest is and can do; memory block size and probing only if asked for."""
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
    """Make this machine's randomness its own, after it was copied from a template: the kernel's and Python's.

    Raises:
        InvalidArgument: no data, or more than 4 KiB.
    """
    if not 0 < len(data) <= _MAX_SEED:
        raise InvalidArgument(f"reseeding needs 1 to {_MAX_SEED} bytes, not {len(data)}")
    fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _RNDADDENTROPY, struct.pack("ii", len(data) * 8, len(data)) + data)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)
    random.seed()


def set_time(seconds: int, microseconds: int) -> None:
    """Set the clock to what the host's showed when it asked.

    A clock that is just a little ahead of that stays: the request has been on its way, and the one that set the clock
    was quicker. So a host that sets the time again and again gets the best of its tries, and no step backwards.

    Raises:
        InvalidArgument: no time of day.
    """
    if seconds < 0 or not 0 <= microseconds < 1_000_000:
        raise InvalidArgument(f"{seconds} s and {microseconds} µs are no time")
    told = seconds * 10**9 + microseconds * 1000
    if not 0 <= time.time_ns() - told < _MAX_DELAY_NS:
        time.clock_settime_ns(time.CLOCK_REALTIME, told)


async def online(cpus: int, memory: bool, timeout: float) -> None:
    """Put processors and memory that the host has plugged in to use.

    Args:
        cpus: how many more processors are to come online.
        memory: whether to take all new memory, too; without processors it is what is waited for.
        timeout: seconds that they may still need to appear; 0 takes what memory there is, be it none.

    Raises:
        DeadlineExceeded: fewer processors, or no memory, appeared in time.
    """
    deadline = time.monotonic() + timeout
    missing = cpus - _online_cpus(cpus)
    while missing:
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(f"{missing} of {cpus} new processors did not appear within {timeout:g} s")
        await asyncio.sleep(_ONLINE_PAUSE)
        missing -= _online_cpus(missing)
    taken = 0
    while memory:
        # One device is several blocks, which appear one after the other.
        new = _online_memory()
        if not new and (taken or cpus or not timeout):
            break
        taken += new
        if not taken and time.monotonic() >= deadline:
            raise DeadlineExceeded(f"no new memory appeared within {timeout:g} s")
        await asyncio.sleep(_ONLINE_PAUSE)


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
                # Movable, so that it can be taken away again.
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
