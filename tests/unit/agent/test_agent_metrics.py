from __future__ import annotations

import re

from kata.agent.metrics import Metrics

LINE = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? -?[0-9.e+]+')
NAMES = {
    *(f"kata_agent_{name}" for name in ("scrape_count", "threads", "total_time", "total_vm", "total_rss")),
    *(f"kata_agent_{name}" for name in ("proc_status", "io_stat", "proc_stat")),
    *(f"kata_guest_{name}" for name in ("load", "tasks", "cpu_time", "vm_stat", "netdev_stat", "diskstat", "meminfo")),
}


def test_katas_names_in_prometheus_text() -> None:
    metrics = Metrics()
    metrics.render()
    lines = metrics.render().splitlines()
    assert {line.split()[2] for line in lines if line.startswith("# TYPE ")} == NAMES
    samples = [line for line in lines if not line.startswith("#")]
    assert all(LINE.fullmatch(line) for line in samples)
    assert "kata_agent_scrape_count 2" in samples
    assert 'kata_guest_cpu_time{cpu="0",item="user"}' in metrics.render()
