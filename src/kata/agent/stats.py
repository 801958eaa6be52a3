"""A container's cgroup v2 files in the shape of the protocol's CgroupStats, which is cgroup v1's."""

from __future__ import annotations

import glob
import os

from kata.linux import cgroup
from kata.protocols import agent_pb2

_MICROSECOND = 1000


def read(directory: str) -> agent_pb2.StatsContainerResponse:
    """Statistics of a cgroup; files that the kernel does not offer count as zero. Times are in nanoseconds.

    Raises:
        OSError: a file cannot be read.
    """
    response = agent_pb2.StatsContainerResponse()
    stats = response.cgroup_stats
    _cpu(directory, stats.cpu_stats)
    _memory(directory, stats.memory_stats)
    stats.pids_stats.current = cgroup.read_value(directory, "pids.current")
    limit = cgroup.read_value(directory, "pids.max")
    # As Kata has it: no limit is 0 for processes, and the largest number for memory.
    stats.pids_stats.limit = 0 if limit == cgroup.UNLIMITED else limit
    _block(directory, stats.blkio_stats)
    for path in glob.glob(f"{glob.escape(directory)}/hugetlb.*.current"):
        name = os.path.basename(path).removesuffix(".current")
        entry = stats.hugetlb_stats[name.removeprefix("hugetlb.")]
        entry.usage = cgroup.read_value(directory, f"{name}.current")
        entry.failcnt = cgroup.read_flat(directory, f"{name}.events").get("max", 0)
    return response


def _cpu(directory: str, cpu: agent_pb2.CpuStats) -> None:
    values = cgroup.read_flat(directory, "cpu.stat")
    cpu.cpu_usage.total_usage = values.get("usage_usec", 0) * _MICROSECOND
    cpu.cpu_usage.usage_in_usermode = values.get("user_usec", 0) * _MICROSECOND
    cpu.cpu_usage.usage_in_kernelmode = values.get("system_usec", 0) * _MICROSECOND
    cpu.throttling_data.periods = values.get("nr_periods", 0)
    cpu.throttling_data.throttled_periods = values.get("nr_throttled", 0)
    cpu.throttling_data.throttled_time = values.get("throttled_usec", 0) * _MICROSECOND


def _memory(directory: str, memory: agent_pb2.MemoryStats) -> None:
    values = cgroup.read_flat(directory, "memory.stat")
    memory.cache = values.get("file", 0)
    memory.use_hierarchy = True  # v2 always accounts for the whole tree
    for key, value in values.items():
        memory.stats[key] = value
    memory.usage.usage = cgroup.read_value(directory, "memory.current")
    memory.usage.max_usage = cgroup.read_value(directory, "memory.peak")
    memory.usage.limit = cgroup.read_value(directory, "memory.max")
    memory.usage.failcnt = cgroup.read_flat(directory, "memory.events").get("max", 0)
    memory.swap_usage.usage = cgroup.read_value(directory, "memory.swap.current")
    memory.swap_usage.limit = cgroup.read_value(directory, "memory.swap.max")
    memory.swap_usage.failcnt = cgroup.read_flat(directory, "memory.swap.events").get("max", 0)
    memory.kernel_usage.usage = values.get("kernel", 0)


def _block(directory: str, blkio: agent_pb2.BlkioStats) -> None:
    columns = (
        (blkio.io_service_bytes_recursive, (("rbytes", "Read"), ("wbytes", "Write"), ("dbytes", "Discard"))),
        (blkio.io_serviced_recursive, (("rios", "Read"), ("wios", "Write"), ("dios", "Discard"))),
    )
    for device, values in cgroup.read_nested(directory, "io.stat").items():
        major, _, minor = device.partition(":")
        for entries, names in columns:
            for key, operation in names:
                if key in values:
                    entries.add(major=int(major), minor=int(minor), op=operation, value=values[key])
