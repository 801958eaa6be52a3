"""A disk of the host in a container, read and written in sequence, bypassing the guest's page cache.

QEMU alone has the same VM and agent without a sandbox; the same disk is hot-plugged in the same way.
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
#: The node of the only disk besides the guest's root.
_IN_GUEST = "/dev/vdb"


def measure(stage: Stage) -> None:
    with _disk(stage.directory) as disk:
        for way, command in _WAYS.items():
            actions: dict[str, Callable[[], float]] = {
                name: partial(_in_container, stage, options, disk, command)
                for name, options in stage.contenders.items()
            }
            actions["bare qemu"] = partial(_in_bare_vm, stage, disk, command)
            stage.record(f"{way} {_MEGABYTES} MB", "MB/s", alternate(min(stage.runs, _MAX_RUNS), actions))


@contextmanager
def _disk(directory: Path) -> Iterator[str]:
    """A loop device on a file whose blocks are allocated."""
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
    """Run the command once to warm up, then on one MB and on all, with the guest's clock, in 10 ms, in between."""
    piece, whole = (command.format(disk=disk, count=count) for count in (1, _MEGABYTES))
    return f"{whole} && {_CLOCK} && {piece} && {_CLOCK} && {whole} && {_CLOCK}"


def _rate(said: str) -> float:
    """Return MB/s for the three times that the script has printed, without the time to load `dd` over 9p."""
    begin, between, end = (float(word) for word in said.split())
    return ((_MEGABYTES - 1) << 20) / 1_000_000 / ((end - between) - (between - begin))


def _in_container(stage: Stage, options: tuple[str, ...], disk: str, command: str) -> float:
    flags = ("--rm", "--device", disk)
    script = _script(command, disk)
    container = unique_id("bench")
    return _rate(
        stage.containerd.ctr("run", *flags, *options, BUSYBOX, container, "sh", "-c", script, timeout=120).stdout
    )


def _in_bare_vm(stage: Stage, disk: str, command: str) -> float:
    fd = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
    try:
        return _rate(run_bare(default_plan(stage.directory), _script(command, _IN_GUEST), partial(_plug, fd)))
    finally:
        os.close(fd)


async def _plug(fd: int, vm: VirtualMachine, agent: AgentClient) -> None:
    """Hot-plug the disk, and wait until the guest has it."""
    await vm.plug(BlockDevice(id="disk0", fd=fd))
