from __future__ import annotations

import os

from kata.agent.metrics import Metrics
from kata.metrics.exposition import read
from kata.metrics.table import GUEST, kinds

MEMINFO = {"mem_total", "mem_available", "active_anon", "k_reclaimable", "committed_as", "hugepages_total", "per_cpu"}


def test_every_name_and_nothing_that_is_not_taken() -> None:
    metrics = Metrics()
    metrics.render()
    found, dropped = read(metrics.render(), kinds(GUEST), 5000)
    assert dropped == 0
    assert set(found) == set(GUEST)
    assert found["kata_agent_scrape_count"].samples == [("", "", "2")]
    assert ("", 'cpu="0",item="user"') in [sample[:2] for sample in found["kata_guest_cpu_time"].samples]
    items = {labels.removeprefix('item="').rstrip('"') for _, labels, _ in found["kata_guest_meminfo"].samples}
    assert items >= MEMINFO


def test_the_process_is_this_one() -> None:
    found, _ = read(Metrics().render(), kinds(GUEST), 5000)
    (opened,) = found["kata_agent_process_open_fds"].samples
    # One more is open while they are counted.
    assert abs(float(opened[2]) - len(os.listdir("/proc/self/fd"))) <= 1
    (resident,) = found["kata_agent_total_rss"].samples
    assert 4 << 20 < float(resident[2]) < 4 << 30
