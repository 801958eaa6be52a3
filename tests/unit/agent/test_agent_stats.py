"""The conversion, on files as Linux writes them; that they are the container's is tested in a guest."""

from __future__ import annotations

from pathlib import Path

from kata.agent import stats
from kata.linux.cgroup import UNLIMITED

FILES = {
    "cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 3\nnr_throttled 2\nthrottled_usec 7\n",
    "memory.stat": "anon 100\nfile 200\nkernel 300\n",
    "memory.current": "600\n",
    "memory.peak": "700\n",
    "memory.max": "max\n",
    "memory.events": "low 0\nhigh 0\nmax 4\noom 0\noom_kill 0\n",
    "memory.swap.max": "800\n",
    "pids.current": "2\n",
    "pids.max": "50\n",
    "io.stat": "254:16 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
    "hugetlb.2MB.current": "2097152\n",
    "hugetlb.2MB.events": "max 5\n",
}


def test_version_2_files_as_version_1_numbers(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    found = stats.read(str(tmp_path)).cgroup_stats
    cpu = found.cpu_stats
    assert (cpu.cpu_usage.total_usage, cpu.cpu_usage.usage_in_usermode) == (1_500_000, 1_000_000)
    assert (cpu.throttling_data.periods, cpu.throttling_data.throttled_time) == (3, 7000)
    memory = found.memory_stats
    assert (memory.cache, memory.usage.usage, memory.usage.max_usage, memory.usage.failcnt) == (200, 600, 700, 4)
    assert (memory.usage.limit, memory.swap_usage.limit, memory.kernel_usage.usage) == (UNLIMITED, 800, 300)
    assert dict(memory.stats) == {"anon": 100, "file": 200, "kernel": 300}
    assert (found.pids_stats.current, found.pids_stats.limit) == (2, 50)
    entries = [
        (entry.major, entry.minor, entry.op, entry.value) for entry in found.blkio_stats.io_service_bytes_recursive
    ]
    assert entries == [(254, 16, "Read", 10), (254, 16, "Write", 20), (254, 16, "Discard", 0)]
    assert (found.hugetlb_stats["2MB"].usage, found.hugetlb_stats["2MB"].failcnt) == (2097152, 5)


def test_a_cgroup_that_offers_nothing(tmp_path: Path) -> None:
    found = stats.read(str(tmp_path)).cgroup_stats
    assert found.cpu_stats.cpu_usage.total_usage == found.pids_stats.current == 0
