"""A sandbox's metrics under Kata's names: of its shim, of its VMM and the server of its files, of agent and guest.

What the guest answers is read before it is handed on, and waited for only so long: a guest that hangs or lies takes
nothing from the rest.

Kata waits a second in each scrape to see how much CPU time a pod takes besides its containers. Here that is since the
scrape before, or since the VM's start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from kata.errors import KataError
from kata.loop.off import off_loop
from kata.metrics.durations import Durations
from kata.metrics.exposition import Family, read, write
from kata.metrics.procfs import Process, Sample, items, one, own_process
from kata.metrics.table import GUEST, SANDBOX, kinds
from kata.runtime.sandbox.states import State

if TYPE_CHECKING:
    from kata.runtime.agent_client.client import AgentClient
    from kata.runtime.hypervisor.base import VirtualMachine
    from kata.runtime.sandbox.container import Container

log = logging.getLogger(__name__)

#: Samples of the guest that are taken: with two CPUs it has less than 500, and each further one adds ten.
_MAX_GUEST_SAMPLES = 4000
#: Seconds between two looks at CPU time, which the kernel counts in steps of 10 ms.
_MIN_INTERVAL_S = 1.0

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Host:
    """A look at the sandbox's processes on the host.

    Attributes:
        samples: by family.
        cpu_seconds, memory_bytes: of all of them; memory that they share with others counts by its share.
        uptime: seconds since the start of the VMM.
    """

    samples: Mapping[str, list[Sample]]
    cpu_seconds: float
    memory_bytes: int
    uptime: float


@dataclass(frozen=True)
class _Used:
    """CPU time in seconds up to a time: of the processes on the host, and of each container in the guest."""

    at: float
    host: float
    containers: Mapping[str, float]


class SandboxMetrics:
    """What a sandbox answers to a scrape.

    Args:
        vm: the sandbox's.
        agent: of its guest.
        containers: the sandbox's, by id.
        calls: durations of containerd's calls.
        virtio_fs: whether virtiofsd serves the shared tree.
    """

    def __init__(
        self,
        vm: VirtualMachine,
        agent: AgentClient,
        containers: Mapping[str, Container],
        calls: Durations,
        *,
        virtio_fs: bool,
    ) -> None:
        self._vm = vm
        self._agent = agent
        self._containers = containers
        self._calls = calls
        self._virtio_fs = virtio_fs
        self._last: _Used | None = None
        self._overhead_percent = 0.0

    async def text(self, timeout: float) -> str:
        """All metrics, as Prometheus' text; without those of the guest if it does not answer in `timeout` seconds."""
        said, stats, host = await asyncio.gather(
            _answered(self._agent.metrics(timeout), timeout),
            _answered(self._container_stats(), timeout),
            off_loop(_look, self._vm.pid, self._vm.share_pid, self._virtio_fs),
        )
        guest, dropped = read(said or "", kinds(GUEST), _MAX_GUEST_SAMPLES)
        samples = dict(host.samples)
        samples["kata_shim_agent_up"] = one(said is not None)
        samples["kata_shim_agent_dropped_samples"] = one(dropped)
        if stats is not None and host.uptime:
            samples.update(self._overhead(host, stats))
        return write([*self._families(samples), *guest.values()])

    def _families(self, samples: Mapping[str, list[Sample]]) -> Iterator[Family]:
        durations = {
            "kata_shim_rpc_durations_histogram_milliseconds": self._calls,
            "kata_shim_agent_rpc_durations_histogram_milliseconds": self._agent.durations,
        }
        for name, metric in SANDBOX.items():
            family = Family(name, metric.kind, metric.text)
            for labels, value in samples.get(name, ()):
                family.add(value, labels)
            if name in durations:
                durations[name].fill(family)
            yield family

    async def _container_stats(self) -> dict[str, tuple[float, int]]:
        """CPU time in seconds and memory in bytes of each running container."""
        running = [name for name, one in self._containers.items() if one.state in (State.RUNNING, State.PAUSED)]
        answers = await asyncio.gather(*(self._agent.stats_container(name) for name in running))
        return {
            name: (
                answer.cgroup_stats.cpu_stats.cpu_usage.total_usage / 1e9,
                answer.cgroup_stats.memory_stats.usage.usage,
            )
            for name, answer in zip(running, answers, strict=True)
        }

    def _overhead(self, host: _Host, stats: Mapping[str, tuple[float, int]]) -> dict[str, list[Sample]]:
        now = _Used(time.monotonic(), host.cpu_seconds, {name: seconds for name, (seconds, _) in stats.items()})
        before = self._last or _Used(now.at - host.uptime, 0.0, dict.fromkeys(now.containers, 0.0))
        if now.at - before.at >= _MIN_INTERVAL_S:
            self._overhead_percent = overhead_percent(before, now)
            self._last = now
        in_guest = sum(memory for _, memory in stats.values())
        return {
            "kata_shim_pod_overhead_cpu": one(self._overhead_percent),
            "kata_shim_pod_overhead_memory_in_bytes": one(max(0, host.memory_bytes - in_guest)),
        }


def overhead_percent(before: _Used, now: _Used) -> float:
    """The CPU time on the host that is not a container's, in percent of one CPU; not less than 0."""
    # A container that has come since has begun with nothing.
    in_guest = sum(seconds - before.containers.get(name, 0.0) for name, seconds in now.containers.items())
    return max(0.0, (now.host - before.host - in_guest) / (now.at - before.at) * 100)


async def _answered(question: Awaitable[_T], timeout: float) -> _T | None:
    """The guest's answer; None if there is none in time."""
    try:
        async with asyncio.timeout(timeout):
            return await question
    except (KataError, TimeoutError) as error:
        log.debug("no metrics of the guest: %s", error)
        return None


def _look(vmm: int, share: int, virtio_fs: bool) -> _Host:
    samples: dict[str, list[Sample]] = {}
    cpu_seconds, memory, uptime = 0.0, 0, 0.0
    for prefix, pid in (("kata_shim", os.getpid()), ("kata_hypervisor", vmm), ("kata_virtiofsd", share)):
        if not pid:
            continue
        try:
            process = Process(pid)
            memory += process.proportional_bytes()
            cpu_seconds += process.cpu_seconds
            if prefix != "kata_virtiofsd" or virtio_fs:
                samples.update(_process(prefix, process))
            if pid == vmm:
                samples["kata_hypervisor_netdev"] = process.network()
                uptime = time.clock_gettime(time.CLOCK_BOOTTIME) - process.started
        except OSError as error:
            log.debug("process %d: %s", pid, error.strerror)  # it has just ended
    samples.update({f"kata_shim_process_{name}": one(value) for name, value in own_process().items()})
    return _Host(samples, cpu_seconds, memory, uptime)


def _process(prefix: str, process: Process) -> dict[str, list[Sample]]:
    return {
        f"{prefix}_threads": one(process.threads),
        f"{prefix}_fds": one(process.descriptors()),
        f"{prefix}_proc_status": items(process.status(unit=1024)),
        f"{prefix}_proc_stat": items(process.times),
        # Without underscores here, although Kata's agent has them.
        f"{prefix}_io_stat": items({name.replace("_", ""): value for name, value in process.io().items()}),
    }
