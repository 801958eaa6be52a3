"""CgroupLimits: the size of the VM, the sandbox's control group on the host, and what is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2

from kata.agent.limits import SYSCTLS
from kata.linux import hierarchies
from kata.protocols.containerd import task_v2_pb2 as task
from kata.runtime.config.loader import load
from kata.runtime.hypervisor import accel
from kata.runtime.ledger.processes import processes_of
from kata.runtime.resources.status import read_all
from kata.ttrpc import Code, StatusError
from kata.ttrpc.typed import Stub
from tests.support.rawshim import RawShim

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]

MIB = 1 << 20
PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
LOOK = "nproc; awk '/MemTotal/{print int($2/1024)}' /proc/meminfo; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max"
LIMITS = "cat /proc/sys/kernel/threads-max /proc/sys/vm/max_map_count; ulimit -u"


def limits(memory: int | None = None, cpus: float | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if memory is not None:
        made["memory"] = {"limit": memory}
    if cpus is not None:
        made["cpu"] = {"quota": int(cpus * 100_000), "period": 100_000}
    return made


def bundle(raw: RawShim, *command: str, resources: Any = None, annotations: Any = None, group: str = "") -> str:
    container = raw.bundle(*command, annotations=annotations)
    path = raw.path(container) / "config.json"
    spec = json.loads(path.read_text())
    spec["linux"]["resources"] = {**spec["linux"].get("resources", {}), **(resources or {})}
    spec["linux"]["cgroupsPath"] = group.replace("ID", container) if group else f"/{container}"
    path.write_text(json.dumps(spec))
    return container


async def update(client: Stub, container: str, resources: dict[str, Any]) -> None:
    value = any_pb2.Any(type_url="x", value=json.dumps(resources).encode())
    await client.call("Update", task.UpdateTaskRequest(id=container, resources=value), timeout=60)


async def said(raw: RawShim, client: Stub, container: str, script: str) -> list[str]:
    """What a shell in the container prints."""
    exec_id = f"e{os.urandom(4).hex()}"
    output = raw.directory / exec_id
    os.mkfifo(output)
    fd = os.open(output, os.O_RDONLY | os.O_NONBLOCK)
    spec = any_pb2.Any(type_url=PROCESS_TYPE, value=json.dumps(raw.exec_spec("sh", "-c", script)).encode())
    request = task.ExecProcessRequest(id=container, exec_id=exec_id, stdout=str(output), spec=spec)
    await client.call("Exec", request, timeout=30)
    await client.call("Start", task.StartRequest(id=container, exec_id=exec_id), timeout=30)
    await client.call("Wait", task.WaitRequest(id=container, exec_id=exec_id), timeout=30)
    with os.fdopen(fd, "rb") as file:
        return file.read().decode().split("\n")[:-1]


def grown() -> int:
    """Processors of a VM that could do with one more than the one it has: emulation gives it none."""
    return 2 if under_kvm() else 1


def under_kvm() -> bool:
    chosen = accel.known_for(load().config.hypervisor)
    return chosen is not None and chosen.name == "kvm"


async def started(raw: RawShim, container: str) -> Stub:
    client = await raw.task(container)
    await client.call("Create", raw.create_request(container), timeout=120)
    await client.call("Start", task.StartRequest(id=container), timeout=60)
    return client


def groups_of(pid: int) -> set[str]:
    return set(hierarchies.own_groups(hierarchies.mounted(), f"/proc/{pid}/cgroup").values())


def directories(group: str) -> list[Path]:
    return [Path(each.directory(group)) for each in hierarchies.mounted()]


def shown(pid: int) -> str:
    """The memory limit of a process's cgroup: where containerd's clients look for a container's."""
    mounted = hierarchies.mounted()
    memory = next((each for each in mounted if "memory" in each.controllers), None)
    if memory is None:
        pytest.skip("needs cgroups of version 1")
    group = hierarchies.own_groups(mounted, f"/proc/{pid}/cgroup")[memory]
    return (Path(memory.directory(group)) / "memory.limit_in_bytes").read_text().strip()


class TestSize:
    async def test_more_and_less_while_it_runs(self, raw: RawShim) -> None:
        container = bundle(raw, resources=limits(64 * MIB))
        client = await started(raw, container)
        cpus, memory, limit, quota = await said(raw, client, container, LOOK)
        assert (cpus, limit, quota) == ("1", str(64 * MIB), "max 100000")
        limits_at_first = await said(raw, client, container, LIMITS)
        pid = (await client.call("State", task.StateRequest(id=container), timeout=60)).pid
        assert shown(pid) == str(64 * MIB)
        await update(client, container, limits(512 * MIB, 1))
        assert shown(pid) == str(512 * MIB)
        more_cpus, more_memory, limit, quota = await said(raw, client, container, LOOK)
        assert (more_cpus, limit, quota) == (str(grown()), str(512 * MIB), "100000 100000")
        assert int(more_memory) >= int(memory) + 384
        assert await said(raw, client, container, LIMITS) == limits_at_first, "they do not depend on its memory"
        assert limits_at_first == [str(SYSCTLS["kernel.threads-max"]), str(SYSCTLS["vm.max_map_count"]), "unlimited"]
        [status] = [each for each in read_all() if each.sandbox == raw.state(container).name]
        assert (status.size.vcpus, status.cgroup) == (grown(), f"/{container}")
        await update(client, container, {"memory": {"limit": 64 * MIB}, "cpu": {"quota": -1}})
        _, less_memory, limit, quota = await said(raw, client, container, LOOK)
        assert (limit, quota) == (str(64 * MIB), "max 100000")
        if under_kvm():
            assert int(less_memory) <= int(more_memory) - 384, "movable memory can be taken away"
        await update(client, container, limits(512 * MIB, 1))
        assert (await said(raw, client, container, LOOK))[0] == str(grown())

    async def test_a_pods_containers_make_it_grow_before_they_start(self, raw: RawShim) -> None:
        pod = bundle(raw, annotations={"io.kubernetes.cri.container-type": "sandbox"})
        client = await started(raw, pod)
        kind = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": pod}
        for number in (1, 2):
            container = bundle(raw, resources=limits(128 * MIB, 0.5), annotations=kind)
            await client.call("Create", raw.create_request(container), timeout=120)
            await client.call("Start", task.StartRequest(id=container), timeout=60)
            [status] = [each for each in read_all() if each.sandbox == raw.state(pod).name]
            assert status.size.memory_mib == 512 + number * 128
            assert (await said(raw, client, container, "nproc")) == [str(grown())], "half a CPU twice is one more"

    async def test_a_pod_that_says_what_it_needs_has_it_from_the_start(self, raw: RawShim) -> None:
        annotations = {
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-memory": str(512 * MIB),
            "io.kubernetes.cri.sandbox-cpu-quota": "100000",
            "io.kubernetes.cri.sandbox-cpu-period": "100000",
        }
        pod = bundle(raw, annotations=annotations)
        client = await started(raw, pod)
        assert (await said(raw, client, pod, "nproc")) == ["2"]
        [status] = [each for each in read_all() if each.sandbox == raw.state(pod).name]
        assert status.size.memory_mib == 1024

    @pytest.mark.parametrize(
        ("resources", "reason"),
        [
            ({"memory": {"limit": -7}}, "memory limit -7 is negative"),
            ({"cpu": {"quota": 10}}, "cpu quota 10 us is below the kernel's minimum"),
            ({"cpu": {"quota": 1000, "period": 5}}, "invalid cpu period 5 us"),
            ({"cpu": {"cpus": "0-"}}, "invalid cpuset '0-'"),
            ({"cpu": {"cpus": "999"}}, "names a CPU that this host"),
        ],
    )
    async def test_limits_that_cannot_be(self, raw: RawShim, resources: Any, reason: str) -> None:
        container = bundle(raw, resources=resources)
        client = await raw.task(container)
        with pytest.raises(StatusError) as caught:
            await client.call("Create", raw.create_request(container), timeout=120)
        assert caught.value.code == Code.INVALID_ARGUMENT
        assert reason in caught.value.message


class TestGroup:
    async def test_everything_of_a_sandbox_is_in_its_group(self, raw: RawShim) -> None:
        container = bundle(raw, group="/kata-test-ID/ID", resources=limits(64 * MIB, 0.5))
        await started(raw, container)
        group = f"/kata-test-{container}/{container}"
        pids = [raw.pid(container), *processes_of(str(raw.state(container)))]
        assert len(pids) >= 2
        # The process that stands for the container shows its limits.
        assert [groups_of(pid) - {"/", f"{group}/{container}"} for pid in pids] == [{group}] * len(pids)
        memory, cpu = (
            next(each for each in hierarchies.mounted() if name in each.controllers or each.unified)
            for name in ("memory", "cpu")
        )
        if not memory.unified:
            assert int((Path(memory.directory(group)) / "memory.limit_in_bytes").read_text()) > (512 + 64) * MIB
            assert (Path(cpu.directory(group)) / "cpu.cfs_quota_us").read_text() == "150000\n"

    async def test_only_the_processors_are_in_it(self, raw: RawShim, tmp_path: Path) -> None:
        configuration = tmp_path / "configuration.toml"
        configuration.write_text("[hypervisor.qemu]\ndefault_memory = 512\n[runtime]\nsandbox_cgroup_only = false\n")
        raw.environment["KATA_CONF_FILE"] = str(configuration)
        container = bundle(raw, resources=limits(cpus=0.5))
        await started(raw, container)
        shim = raw.pid(container)
        assert groups_of(shim) - {"/"} == {f"/kata_overhead/{container}@raw"}
        mounted = hierarchies.mounted()
        threads = {
            group
            for pid in processes_of(str(raw.state(container)))
            for thread in Path(f"/proc/{pid}/task").iterdir()
            for group in hierarchies.own_groups(mounted, f"{thread}/cgroup").values()
        }
        assert threads - {"/"} == {f"/kata_overhead/{container}@raw", f"/{container}", f"/{container}/{container}"}

    @pytest.mark.parametrize("victim", ["shim", "qemu"])
    async def test_nothing_of_it_is_left_when_somebody_kills(self, raw: RawShim, victim: str) -> None:
        container = bundle(raw, group="/kata-test-ID/ID")
        await started(raw, container)
        if victim == "shim":
            raw.kill(container, signal.SIGKILL)
        else:
            for pid in processes_of(str(raw.state(container))):
                if pid != raw.pid(container):
                    with contextlib.suppress(ProcessLookupError):  # they end with each other
                        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(raw.binary, container, "delete")
        assert not [path for path in directories(f"/kata-test-{container}") if path.exists()]

    @pytest.mark.parametrize("path", ["/a/../../b", "..", "/", "/x\ny", "bad-.slice:p:n"])
    async def test_a_path_that_is_none(self, raw: RawShim, path: str) -> None:
        container = bundle(raw, group=path)
        client = await raw.task(container)
        with pytest.raises(StatusError) as caught:
            await client.call("Create", raw.create_request(container), timeout=120)
        assert caught.value.code == Code.INVALID_ARGUMENT
        assert "cgroupsPath" in caught.value.message
