"""A disk of the host's in a container, read and written in sequence, past the guest's page cache.

QEMU alone is our machine and agent without a sandbox; the disk is the same one, plugged in the same way.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.bare import default_plan, run_bare
from benchmarks.figures import alternate
from benchmarks.stage import Stage
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.hypervisor.base import VirtualMachine
from kata.runtime.hypervisor.devices import BlockDevice
from tests.support.containerd import unique_id
from tests.support.images import BUSYBOX

_MEGABYTES = 2000
#: Each run takes seconds.
_MAX_RUNS = 5

_CLOCK = "cut -d' ' -f1 /proc/uptime"
_DD = "dd bs=1048576 count={count} 2>/dev/null"
_WAYS = {
    "write": _DD + " if=/dev/zero of={disk} oflag=direct conv=fsync",
    "read": _DD + " if={disk} of=/dev/null iflag=direct",
}
#: Where the guest has the only disk besides its root.
_IN_GUEST = "/dev/vdb"


def measure(stage: Stage) -> None:
    with _disk(stage.directory) as disk:
        for way, command in _WAYS.items():
            actions: dict[str, Callable[[], float]] = {
                name: partial(_in_container, stage, options, disk, command)
                for name, options in stage.contenders.items()
            }
            actions["bare qemu"] = partial(_in_machine, stage, disk, command)
            stage.record(f"{way} {_MEGABYTES} MB", "MB/s", alternate(min(stage.runs, _MAX_RUNS), actions))


@contextmanager
def _disk(directory: Path) -> Iterator[str]:
    """A loop device on a file whose blocks are there."""
    image = directory / "disk.img"
    with image.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, _MEGABYTES << 20)
    done = subprocess.run(
        ["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True, timeout=30
    )
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=30)
        image.unlink()


def _script(command: str, disk: str) -> str:
    """Once for practice, then a piece and all of it, against the machine's own clock of hundredths of a second."""
    piece, whole = (command.format(disk=disk, count=count) for count in (1, _MEGABYTES))
    return f"{whole} && {_CLOCK} && {piece} && {_CLOCK} && {whole} && {_CLOCK}"


def _rate(said: str) -> float:
    """MB/s by the three times that the script has written, without what it takes to load `dd` over 9p."""
    begin, between, end = (float(word) for word in said.split())
    return ((_MEGABYTES - 1) << 20) / 1_000_000 / ((end - between) - (between - begin))


def _in_container(stage: Stage, options: tuple[str, ...], disk: str, command: str) -> float:
    flags = ("--rm", "--device", disk)
    script = _script(command, disk)
    container = unique_id("bench")
    return _rate(
        stage.containerd.ctr("run", *flags, *options, BUSYBOX, container, "sh", "-c", script, timeout=120).stdout
    )


def _in_machine(stage: Stage, disk: str, command: str) -> float:
    fd = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
    try:
        return _rate(run_bare(default_plan(stage.directory), _script(command, _IN_GUEST), partial(_plug, fd)))
    finally:
        os.close(fd)


async def _plug(fd: int, machine: VirtualMachine, agent: AgentClient) -> None:
    """Give the machine the disk, and wait until the guest has it."""
    await machine.plug(BlockDevice(id="disk0", fd=fd))
