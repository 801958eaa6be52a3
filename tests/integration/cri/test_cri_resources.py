"""Limits, their change, and what happens at the limit."""

from __future__ import annotations

from kata.protocols import cri_pb2 as pb
from tests.support.cri import Pod

MIB = 1 << 20


def test_out_of_memory(pod: Pod) -> None:
    limit = pb.LinuxContainerResources(memory_limit_in_bytes=48 * MIB)
    container = pod.run("sh", "-c", "x=a; while :; do x=$x$x; done", resources=limit)
    status = container.wait(timeout=90)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    container.remove()


def test_memory_limit_in_the_container(pod: Pod) -> None:
    limit = pb.LinuxContainerResources(memory_limit_in_bytes=96 * MIB)
    container = pod.run(resources=limit)
    files = "/sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes"
    assert container.sh(f"cat {files} 2>/dev/null | head -1") == f"{96 * MIB}\n"
    container.update(memory_limit_in_bytes=128 * MIB)
    assert container.sh(f"cat {files} 2>/dev/null | head -1") == f"{128 * MIB}\n"
    container.remove()


def test_processor_limit_in_the_container(pod: Pod) -> None:
    container = pod.run(resources=pb.LinuxContainerResources(cpu_quota=30_000, cpu_period=100_000))
    files = "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null | head -1"
    assert container.sh(files).split()[0] == "30000"
    container.update(cpu_quota=40_000, cpu_period=100_000)
    assert container.sh(files).split()[0] == "40000"
    container.remove()
