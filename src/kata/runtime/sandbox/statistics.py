"""What a sandbox uses at the moment, as JSON: its containers by their cgroups in the guest, its VM by the host's /proc.

The counters never go back while the sandbox runs: whoever asks twice has the rates.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

from kata.errors import KataError
from kata.loop.off import off_loop
from kata.protocols import agent_pb2
from kata.runtime.sandbox.states import State

if TYPE_CHECKING:
    from kata.runtime.sandbox.container import Container
    from kata.runtime.sandbox.sandbox import Sandbox

#: The kernel's word for no limit of memory: the largest number of pages, in bytes; crun's is a little less.
_UNLIMITED = 1 << 62
#: The first four of an interface's eight receive columns in /proc/net/dev, and of its transmit columns (proc(5)).
_RX_BYTES, _RX_PACKETS, _TX_BYTES, _TX_PACKETS = 0, 1, 8, 9


async def collect(sandbox: Sandbox) -> dict[str, Any]:
    """Return the statistics; docs/reference/management.md has the fields.

    A container that ends meanwhile, or that the guest does not answer for, is left out.
    """
    described = sandbox.describe()
    names = {interface["name"] for interface in described["interfaces"]}
    vm = described["vm"]
    containers = list(sandbox.containers.values())
    found = await asyncio.gather(*(_of(container) for container in containers))
    cpu_ns, memory, network = await off_loop(_of_vm, vm["pid"], names)
    return {
        "time": time.time(),
        "containers": {container.id: one for container, one in zip(containers, found, strict=True) if one is not None},
        "network": network,
        "vm": {
            "cpu_ns": cpu_ns,
            "memory_bytes": memory,
            "vcpus": vm["vcpus"],
            "memory_size_bytes": vm["memory_mib"] << 20,
        },
    }


async def _of(container: Container) -> dict[str, Any] | None:
    if container.refresh() not in (State.CREATED, State.RUNNING, State.PAUSED):
        return None
    try:
        return of_cgroup((await container.stats()).cgroup_stats)
    except KataError:
        return None


def of_cgroup(stats: agent_pb2.CgroupStats) -> dict[str, Any]:
    """A container's part, from what the agent says of its cgroup."""
    cpu, memory = stats.cpu_stats, stats.memory_stats.usage
    blocks = stats.blkio_stats.io_service_bytes_recursive
    return {
        "cpu_ns": cpu.cpu_usage.total_usage,
        "cpu_throttled_ns": cpu.throttling_data.throttled_time,
        "memory_bytes": memory.usage,
        "memory_limit_bytes": memory.limit if 0 < memory.limit < _UNLIMITED else None,
        "pids": stats.pids_stats.current,
        "read_bytes": sum(entry.value for entry in blocks if entry.op.lower() == "read"),
        "written_bytes": sum(entry.value for entry in blocks if entry.op.lower() == "write"),
    }


def _of_vm(pid: int, interfaces: set[str]) -> tuple[int, int, dict[str, dict[str, int]]]:
    """CPU time and memory of the VMM's process, and the traffic of the pod's interfaces; zeros once it has ended."""
    try:
        stat = _read(pid, "stat").rpartition(")")[2].split()
        cpu_ns = (int(stat[11]) + int(stat[12])) * (10**9 // os.sysconf("SC_CLK_TCK"))
        return cpu_ns, proportional(_read(pid, "smaps_rollup")), traffic(_read(pid, "net/dev"), interfaces)
    except OSError:
        return 0, 0, {}


def proportional(rollup: str) -> int:
    """Bytes of a process's memory, what it shares with others in equal parts (proc(5), "smaps_rollup": Pss)."""
    for line in rollup.splitlines():
        name, _, value = line.partition(":")
        if name == "Pss":
            return int(value.split()[0]) << 10
    return 0


def traffic(table: str, interfaces: set[str]) -> dict[str, dict[str, int]]:
    """Counters of these interfaces from /proc/PID/net/dev, as the pod counts: received is what came in."""
    found = {}
    for line in table.splitlines():
        name, separator, columns = line.partition(":")
        if separator and name.strip() in interfaces:
            values = [int(value) for value in columns.split()]
            found[name.strip()] = {
                "rx_bytes": values[_RX_BYTES],
                "tx_bytes": values[_TX_BYTES],
                "rx_packets": values[_RX_PACKETS],
                "tx_packets": values[_TX_PACKETS],
            }
    return found


def _read(pid: int, name: str) -> str:
    with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
        return file.read()
