"""A container's cgroup statistics as containerd expects them: `Metrics` of cgroups version 1 or 2, as on the host."""

from __future__ import annotations

import os

from google.protobuf.message import Message

from kata.protocols import agent_pb2
from kata.protocols.containerd import cgroups_v1_pb2, cgroups_v2_pb2

_LRU = ("inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable")


def host_is_unified() -> bool:
    """Whether the host has cgroups version 2 alone; hybrid hosts count as version 1, as they do for containerd."""
    return os.path.exists("/sys/fs/cgroup/cgroup.controllers")


def metrics(stats: agent_pb2.StatsContainerResponse, *, unified: bool) -> Message:
    """Convert the agent's answer.

    Args:
        stats: the agent's answer.
        unified: whether the host has cgroups version 2 alone.
    """
    return _v2(stats.cgroup_stats) if unified else _v1(stats.cgroup_stats)


def _v1(stats: agent_pb2.CgroupStats) -> cgroups_v1_pb2.Metrics:
    answer = cgroups_v1_pb2.Metrics()
    cpu, memory = stats.cpu_stats, stats.memory_stats
    answer.cpu.usage.total = cpu.cpu_usage.total_usage
    answer.cpu.usage.user = cpu.cpu_usage.usage_in_usermode
    answer.cpu.usage.kernel = cpu.cpu_usage.usage_in_kernelmode
    answer.cpu.throttling.periods = cpu.throttling_data.periods
    answer.cpu.throttling.throttled_periods = cpu.throttling_data.throttled_periods
    answer.cpu.throttling.throttled_time = cpu.throttling_data.throttled_time
    answer.memory.cache = memory.cache
    answer.memory.usage.usage = memory.usage.usage
    answer.memory.usage.max = memory.usage.max_usage
    answer.memory.usage.failcnt = memory.usage.failcnt
    answer.memory.usage.limit = memory.usage.limit
    answer.memory.swap.usage = memory.swap_usage.usage
    answer.memory.swap.limit = memory.swap_usage.limit
    answer.memory.rss = memory.stats.get("anon", 0)
    answer.memory.mapped_file = memory.stats.get("file_mapped", 0)
    answer.memory.pg_fault = memory.stats.get("pgfault", 0)
    answer.memory.pg_maj_fault = memory.stats.get("pgmajfault", 0)
    for name in _LRU:
        setattr(answer.memory, name, memory.stats.get(name, 0))
        setattr(answer.memory, f"total_{name}", memory.stats.get(name, 0))
    answer.pids.current = stats.pids_stats.current
    answer.pids.limit = stats.pids_stats.limit
    for entry in stats.blkio_stats.io_service_bytes_recursive:
        answer.blkio.io_service_bytes_recursive.add(
            major=entry.major, minor=entry.minor, op=entry.op, value=entry.value
        )
    return answer


def _v2(stats: agent_pb2.CgroupStats) -> cgroups_v2_pb2.Metrics:
    answer = cgroups_v2_pb2.Metrics()
    cpu, memory = stats.cpu_stats, stats.memory_stats
    answer.cpu.usage_usec = cpu.cpu_usage.total_usage // 1000
    answer.cpu.user_usec = cpu.cpu_usage.usage_in_usermode // 1000
    answer.cpu.system_usec = cpu.cpu_usage.usage_in_kernelmode // 1000
    answer.cpu.nr_periods = cpu.throttling_data.periods
    answer.cpu.nr_throttled = cpu.throttling_data.throttled_periods
    answer.cpu.throttled_usec = cpu.throttling_data.throttled_time // 1000
    answer.memory.usage = memory.usage.usage
    answer.memory.usage_limit = memory.usage.limit
    answer.memory.swap_usage = memory.swap_usage.usage
    answer.memory.swap_limit = memory.swap_usage.limit
    for name in (
        "anon",
        "file",
        "kernel_stack",
        "slab",
        "inactive_anon",
        "active_anon",
        "inactive_file",
        "active_file",
    ):
        setattr(answer.memory, name, memory.stats.get(name, 0))
    answer.memory.pgfault = memory.stats.get("pgfault", 0)
    answer.memory.pgmajfault = memory.stats.get("pgmajfault", 0)
    answer.pids.current = stats.pids_stats.current
    answer.pids.limit = stats.pids_stats.limit
    return answer
