"""What is measured. A part takes the stage and leaves figures on it; the order here is the order of a full run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.parts import disks, execs, files, memory, network, parallel, pods, shim, standby, start, stdout, stop
from benchmarks.stage import Stage


@dataclass(frozen=True)
class Part:
    """One part: what to run, and a sentence for people."""

    run: Callable[[Stage], None]
    sentence: str


PARTS: Mapping[str, Part] = {
    "start": Part(start.measure, "From a command to an agent that answers, and to the end of a container of true."),
    "standby": Part(standby.measure, "To the end of a container of true, with a machine in standby."),
    "exec": Part(execs.measure, "One more process, true, in a container that runs."),
    "stop": Part(stop.measure, "From the command that kills a container until nothing of it is left."),
    "parallel": Part(parallel.measure, "Containers of true, started at the same moment, until the last has ended."),
    "pods": Part(pods.measure, "Pods of Kubernetes' interface on a CNI network, until a container runs in each."),
    "memory": Part(memory.measure, "Proportional memory (PSS) per idle sandbox, all its processes included."),
    "shim": Part(shim.measure, "What containerd waits for at each container, and the memory of what stays."),
    "files": Part(files.measure, "Files in the root file system of a running container."),
    "disks": Part(disks.measure, "A disk of the host in a container, in sequence, past the guest's page cache."),
    "network": Part(network.measure, "One TCP connection between the host and a container on a bridge, each way."),
    "stdout": Part(stdout.measure, "A container's standard output, as fast as it can write and ctr can read."),
}
