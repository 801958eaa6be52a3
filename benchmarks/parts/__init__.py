"""What is measured. A part records figures on the stage; the order here is that of a full run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.parts import (
    disks,
    execs,
    files,
    kernels,
    memory,
    monitor,
    network,
    parallel,
    pods,
    shim,
    standby,
    start,
    stdout,
    stop,
    tracing,
    verity,
    work,
)
from benchmarks.stage import Stage


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        run: measures.
        sentence: for the report.
        by_name_only: not part of a full run, as it needs something that a host may not have.
    """

    run: Callable[[Stage], None]
    sentence: str
    by_name_only: bool = False


PARTS: Mapping[str, Part] = {
    "start": Part(start.measure, "From a command to the agent's answer, and to the end of a container that runs true."),
    "standby": Part(standby.measure, "To the end of a container that runs true, with a VM in standby."),
    "exec": Part(execs.measure, "One more process, true, in a running container."),
    "stop": Part(stop.measure, "From killing a container until task and container are removed."),
    "parallel": Part(parallel.measure, "Containers that run true, started together, until the last has ended."),
    "pods": Part(pods.measure, "Pods through the CRI on a CNI network, until a container runs in each."),
    "memory": Part(memory.measure, "Proportional set size (PSS) of all processes of an idle sandbox."),
    "shim": Part(
        shim.measure, "The shim's start and delete, for which containerd waits, and a shim's resident memory."
    ),
    "tracing": Part(
        tracing.measure,
        "A container's run, and the memory of shim and agent, with tracing off and on; spans are taken.",
    ),
    "monitor": Part(
        monitor.measure,
        "A scrape of kata-monitor: small processes that only answer, one of them hangs and one is dead.",
    ),
    "files": Part(files.measure, "Files in the root file system of a running container."),
    "kernels": Part(kernels.measure, "Each kernel of which this host has an image, in turns.", by_name_only=True),
    "verity": Part(
        verity.measure,
        "A root that the guest's kernel checks (dm-verity), and one that it does not.",
        by_name_only=True,
    ),
    "work": Part(work.measure, "Real work: apt, git, pip, tar, SQLite and Python, in each kind of file system."),
    "disks": Part(disks.measure, "A disk of the host in a container, in sequence, bypassing the guest's page cache."),
    "network": Part(network.measure, "One TCP connection between the host and a container on a bridge, each way."),
    "stdout": Part(stdout.measure, "A container's standard output, through ctr into a pipe."),
}
