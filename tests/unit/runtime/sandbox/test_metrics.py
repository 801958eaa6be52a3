"""A sandbox's metrics: of processes that are there, of a guest that lies, and of one that does not answer."""

from __future__ import annotations

import asyncio
import os
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kata.agent.metrics import Metrics
from kata.errors import InvalidArgument, Unavailable
from kata.metrics.durations import Durations
from kata.metrics.exposition import read
from kata.metrics.table import GUEST, SANDBOX, kinds
from kata.protocols import agent_pb2
from kata.runtime.sandbox import routes
from kata.runtime.sandbox.metrics import SandboxMetrics, _Used, overhead_percent
from kata.runtime.sandbox.states import State

ALL = kinds({**SANDBOX, **GUEST})


class Agent:
    """Of a guest that answers with a text."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.durations = Durations()
        self.durations.add("grpc.CheckRequest", 0.002)

    async def metrics(self, timeout: float) -> str:
        return self.text

    async def stats_container(self, container_id: str) -> agent_pb2.StatsContainerResponse:
        answer = agent_pb2.StatsContainerResponse()
        answer.cgroup_stats.cpu_stats.cpu_usage.total_usage = 10**6
        answer.cgroup_stats.memory_stats.usage.usage = 1 << 20
        return answer


class Mute(Agent):
    async def metrics(self, timeout: float) -> str:
        await asyncio.sleep(3600)
        raise AssertionError

    async def stats_container(self, container_id: str) -> agent_pb2.StatsContainerResponse:
        raise Unavailable("the guest is gone")


def made(agent: Agent, *, vmm: int = os.getpid(), virtio_fs: bool = True) -> SandboxMetrics:
    vm = SimpleNamespace(pid=vmm, share_pid=vmm)
    containers = {"box": SimpleNamespace(state=State.RUNNING)}
    calls = Durations()
    calls.add("create", 0.5)
    return SandboxMetrics(cast(Any, vm), cast(Any, agent), cast(Any, containers), calls, virtio_fs=virtio_fs)


def values(text: str) -> dict[str, dict[str, float]]:
    found, dropped = read(text, ALL, 10_000)
    assert dropped == 0
    return {name: {labels: float(value) for _, labels, value in one.samples} for name, one in found.items()}


async def test_every_name_is_there() -> None:
    found = values(await made(Agent(Metrics().render())).text(1.0))
    assert set(found) == set(ALL)
    assert found["kata_shim_agent_up"] == {"": 1}
    assert found["kata_shim_pod_overhead_memory_in_bytes"][""] > 1 << 20
    status = found["kata_shim_proc_status"]
    assert status['item="vmrss"'] == pytest.approx(found["kata_shim_process_resident_memory_bytes"][""], rel=0.5)
    assert 'item="readbytes"' in found["kata_shim_io_stat"]


async def test_virtiofsd_s_only_where_it_serves() -> None:
    found = values(await made(Agent(), virtio_fs=False).text(1.0))
    assert not [name for name in found if name.startswith("kata_virtiofsd")]


async def test_a_guest_that_lies_takes_nothing_from_the_rest() -> None:
    lies = [
        'kata_agent_threads{sandbox_id="another"} 1',
        "kata_shim_fds 99999",
        "kata_hypervisor_threads{} 7",
        "# TYPE kata_shim_fds counter",
        'kata_guest_load{item="\x1b[31m"} 1',
        *(f'kata_guest_vm_stat{{item="{number}"}} 1' for number in range(10_000)),
    ]
    found = values(await made(Agent("\n".join(lies))).text(1.0))
    assert found["kata_shim_fds"][""] < 10_000
    assert len(found["kata_guest_vm_stat"]) == 4000
    assert found["kata_shim_agent_dropped_samples"] == {"": 4 + 6000}


async def test_a_guest_that_does_not_answer_is_left_out() -> None:
    begin = time.monotonic()
    found = values(await made(Mute()).text(1.0))
    assert time.monotonic() - begin < 5
    assert found["kata_shim_agent_up"] == {"": 0}
    assert found["kata_hypervisor_threads"][""] >= 1
    assert not [name for name in found if name.startswith(("kata_guest", "kata_agent_", "kata_shim_pod"))]


async def test_after_the_vm_s_end() -> None:
    found = values(await made(Mute(), vmm=0).text(1.0))
    assert not [name for name in found if name.startswith("kata_hypervisor")]
    assert found["kata_shim_threads"][""] >= 1


async def test_a_guest_has_as_long_as_is_said() -> None:
    begin = time.monotonic()
    assert values(await made(Mute()).text(0.1))["kata_shim_agent_up"] == {"": 0}
    assert time.monotonic() - begin < 0.9


@pytest.mark.parametrize("said", ["", "x", "0", "-1", "nan", "inf", "61", "1" * 400])
def test_what_is_no_timeout(said: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a number of seconds"):
        routes._seconds({"timeout": said})


def test_the_timeout() -> None:
    assert (routes._seconds({}), routes._seconds({"timeout": "2.5"})) == (1.0, 2.5)


def test_overhead_is_what_is_not_the_containers() -> None:
    before = _Used(100.0, 10.0, {"a": 1.0, "gone": 50.0})
    now = _Used(102.0, 13.0, {"a": 2.0, "new": 0.5})
    assert overhead_percent(before, now) == pytest.approx(75.0)
    assert overhead_percent(before, _Used(102.0, 10.5, {"a": 9.0})) == 0
