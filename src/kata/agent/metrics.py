"""The agent's and the guest's metrics as Prometheus text, under Kata's names (`kata.metrics.table`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kata.metrics import procfs
from kata.metrics.exposition import Family, write
from kata.metrics.procfs import Process, Sample, items, one
from kata.metrics.table import GUEST


class Metrics:
    """Counts scrapes, and reads everything else anew for each."""

    def __init__(self) -> None:
        self._scrapes = 0

    def render(self) -> str:
        """All metrics as text. Raises OSError: /proc cannot be read."""
        self._scrapes += 1
        return write(_families(self._scrapes))


def _families(scrapes: int) -> Iterator[Family]:
    for name, samples in _samples(scrapes):
        metric = GUEST[name]
        family = Family(name, metric.kind, metric.text)
        for labels, value in samples:
            family.add(value, labels)
        yield family


def _samples(scrapes: int) -> Iterator[tuple[str, Iterable[Sample]]]:
    agent = Process()
    yield "kata_agent_scrape_count", one(scrapes)
    yield "kata_agent_threads", one(agent.threads)
    yield "kata_agent_total_time", one(agent.cpu_seconds)
    yield "kata_agent_total_vm", one(agent.virtual_bytes)
    yield "kata_agent_total_rss", one(agent.resident_bytes)
    yield "kata_agent_proc_stat", items(agent.times)
    yield "kata_agent_proc_status", items(agent.status())
    yield "kata_agent_io_stat", items(agent.io())
    for name, value in procfs.own_process().items():
        if f"kata_agent_process_{name}" in GUEST:
            yield f"kata_agent_process_{name}", one(value)
    yield "kata_guest_load", items(procfs.load())
    yield "kata_guest_tasks", items(procfs.tasks())
    yield "kata_guest_cpu_time", procfs.cpu_time()
    yield "kata_guest_vm_stat", items(procfs.virtual_memory())
    yield "kata_guest_netdev_stat", procfs.network()
    yield "kata_guest_diskstat", procfs.disks()
    yield "kata_guest_meminfo", items(procfs.memory())
