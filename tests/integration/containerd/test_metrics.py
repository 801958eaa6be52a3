"""`/metrics` of a sandbox of containerd's: every name, and what a hung or dead guest leaves of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.errors import KataError
from kata.management.client import request
from kata.metrics.exposition import read
from kata.metrics.table import GUEST, SANDBOX, kinds
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX
from tests.support.leaks import TEST_PREFIX
from tests.support.waiting import eventually

pytestmark = pytest.mark.containerd

Values = dict[str, dict[str, float]]


def scrape(directory: Path) -> Values:
    """A sandbox's metrics: of each family the values by their labels."""
    text = asyncio.run(request(directory, "GET", "/metrics", timeout=30)).decode()
    found, dropped = read(text, kinds({**SANDBOX, **GUEST}), 100_000)
    assert dropped == 0
    return {
        name: {labels + suffix: float(value) for suffix, labels, value in family.samples}
        for name, family in found.items()
    }


@pytest.fixture(scope="module")
def sandbox(containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state directory of a sandbox that virtiofsd serves, since its container may write to a volume."""
    container_id = unique_id(TEST_PREFIX)
    volume = tmp_path_factory.mktemp("volume")
    mount = f"type=bind,src={volume},dst=/volume,options=rbind:rw"
    containerd.ctr(
        "run", "--detach", "--mount", mount, "--runtime", RUNTIME, BUSYBOX, container_id, "sleep", "600"
    )  # fmt: skip
    yield containerd.state(container_id)
    containerd.ctr("task", "kill", "--signal", "9", container_id, check=False)
    eventually(lambda: containerd.ctr("task", "delete", container_id, check=False).returncode == 0, "its deletion")
    containerd.ctr("container", "delete", container_id, check=False)


def test_every_name(sandbox: Path) -> None:
    # The agent of a guest that is emulated on a busy host may not answer in time.
    found = eventually(lambda: scrape(sandbox), "the guest's", lambda seen: seen["kata_shim_agent_up"][""] == 1)
    assert set(found) == {*SANDBOX, *GUEST}
    calls = found["kata_shim_rpc_durations_histogram_milliseconds"]
    assert calls['action="create"_count'] == calls['action="start"_count'] == 1
    assert calls['action="create"_sum'] > 10
    agent = found["kata_shim_agent_rpc_durations_histogram_milliseconds"]
    assert agent['action="grpc.CreateContainerRequest"_count'] == 1
    assert agent['action="grpc.GetMetricsRequest"_count'] >= 1
    assert found["kata_shim_agent_dropped_samples"] == {"": 0}
    # The VMM has more memory than the shim, and the guest less than its VM.
    assert found["kata_hypervisor_proc_status"]['item="vmsize"'] > 512 << 20
    assert 256 << 20 < found["kata_guest_meminfo"]['item="mem_total"'] <= 512 << 20
    assert found["kata_hypervisor_threads"][""] > found["kata_virtiofsd_threads"][""] >= 1
    assert 10 << 20 < found["kata_shim_pod_overhead_memory_in_bytes"][""] < 512 << 20
    assert found["kata_guest_cpu_time"]['cpu="0",item="user"'] > 0


def test_counters_count(sandbox: Path) -> None:
    before = eventually(lambda: scrape(sandbox), "the guest's", lambda seen: seen["kata_shim_agent_up"][""] == 1)
    after = eventually(lambda: scrape(sandbox), "the guest's", lambda seen: seen["kata_shim_agent_up"][""] == 1)
    assert after["kata_agent_scrape_count"][""] > before["kata_agent_scrape_count"][""]
    assert (
        after["kata_guest_cpu_time"]['cpu="total",item="idle"']
        >= before["kata_guest_cpu_time"]['cpu="total",item="idle"']
    )
    started = "kata_shim_process_start_time_seconds"
    assert after[started] == before[started]
    assert 0 < time.time() - after[started][""] < 600


def test_a_guest_that_hangs_and_one_that_is_dead(sandbox: Path) -> None:
    pid = json.loads(asyncio.run(request(sandbox, "GET", "/sandbox", timeout=30)))["vm"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        found = scrape(sandbox)
        assert time.monotonic() - begin < 10
    finally:
        os.kill(pid, signal.SIGCONT)
    assert found["kata_shim_agent_up"] == {"": 0}
    assert set(found) >= {"kata_hypervisor_threads", "kata_shim_threads", "kata_virtiofsd_fds"}
    assert not set(found) & {*GUEST, "kata_shim_pod_overhead_cpu"}

    os.kill(pid, signal.SIGKILL)
    found = eventually(
        lambda: scrape(sandbox), "metrics without the VMM", lambda seen: "kata_hypervisor_threads" not in seen
    )
    assert found["kata_shim_agent_up"] == {"": 0}
    with pytest.raises(KataError):
        asyncio.run(request(sandbox, "GET", "/metricz", timeout=30))
