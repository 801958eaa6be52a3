"""Containers in a real guest: their life, their processes, their limits."""

from __future__ import annotations

import asyncio
import itertools
import signal
from typing import Any

import pytest

from kata.errors import Code
from kata.protocols import agent_pb2 as pb
from kata.ttrpc import ConnectionClosed, StatusError
from tests.support.waiting import eventually_async
from tests.vm.guest import SHARED, Agent, Guest, container_spec

pytestmark = [pytest.mark.vm, pytest.mark.timeout(120)]

_ids = (f"c{number}" for number in itertools.count())


ROOTFS = f"{SHARED}/base/rootfs"


def spec(*arguments: str, **process: Any) -> dict[str, Any]:
    return container_spec(ROOTFS, *arguments, **process)


async def inspect(agent: Agent, script: str) -> str:
    """Output of a shell script in a container that sees the guest's /run, /sys/fs/cgroup and /proc below /guest."""
    container_id = next(_ids)
    wanted = spec("sh", "-c", script)
    wanted["mounts"] += [
        {"destination": f"/guest{path}", "type": "bind", "source": path, "options": ["rbind", "ro"]}
        for path in ("/run", "/sys/fs/cgroup", "/proc")
    ]
    await agent.run(container_id, wanted)
    output = await agent.read_all(container_id)
    await agent.remove(container_id)
    return output.decode()


async def test_output_and_exit_code_arrive(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, spec("sh", "-c", "echo out; echo err >&2; hostname; exit 3"))
    assert await agent.wait(container_id) == 3
    assert await agent.read_all(container_id) == b"out\npod\n"
    assert await agent.read_all(container_id, stderr=True) == b"err\n"
    await agent.remove(container_id)


async def test_several_wait_for_one_exit(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, spec("sh", "-c", "cat; exit 7"))
    waiters = [asyncio.create_task(agent.wait(container_id)) for _ in range(3)]
    await asyncio.sleep(0.1)
    assert not any(waiter.done() for waiter in waiters)
    await agent.close_stdin(container_id)
    assert await asyncio.gather(*waiters) == [7, 7, 7]
    await agent.remove(container_id)


async def test_no_program_leaves_nothing_behind(agent: Agent) -> None:
    container_id = next(_ids)
    with pytest.raises(StatusError, match="executable file not found") as caught:
        await agent.create(container_id, spec("/bin/nonsense"))
    assert caught.value.code == Code.NOT_FOUND
    script = (
        f"ls -d /guest/run/crun/{container_id} /guest/run/kata-containers/{container_id} "
        f"/guest/sys/fs/cgroup/kata/{container_id} 2>/dev/null; grep -c {container_id} /guest/proc/1/mountinfo"
    )
    assert await inspect(agent, script) == "0\n"
    await agent.run(container_id, spec("true"))
    assert await agent.wait(container_id) == 0
    await agent.remove(container_id)
    assert await inspect(agent, script) == "0\n"


async def test_no_permission_to_execute(agent: Agent) -> None:
    with pytest.raises(StatusError, match="permission denied") as caught:
        await agent.create(next(_ids), spec("/etc/passwd"))
    assert caught.value.code == Code.PERMISSION_DENIED


async def test_taken_and_bad_ids(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.create(container_id, spec("true"))
    for bad, code in (
        (container_id, Code.ALREADY_EXISTS),
        ("shared", Code.ALREADY_EXISTS),
        ("../x", Code.INVALID_ARGUMENT),
        ("x" * 300, Code.INVALID_ARGUMENT),
        ("", Code.INVALID_ARGUMENT),
    ):
        with pytest.raises(StatusError) as caught:
            await agent.create(bad, spec("true"))
        assert caught.value.code == code, bad
    await agent.remove(container_id)
    for call in (agent.start, agent.remove, agent.wait):
        with pytest.raises(StatusError) as caught:
            await call(container_id)
        assert caught.value.code == Code.NOT_FOUND


async def test_exec(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, spec("sleep", "1000"))
    await agent.exec(container_id, "e1", "sh", "-c", "id -u; cat; exit 4", user={"uid": 65534, "gid": 65534})
    await agent.write(container_id, b"to exec", "e1")
    await agent.close_stdin(container_id, "e1")
    assert await agent.read_all(container_id, "e1") == b"65534\nto exec"
    assert await agent.wait(container_id, "e1") == 4
    with pytest.raises(StatusError, match="executable file not found") as caught:
        await agent.exec(container_id, "e2", "nonsense")
    assert caught.value.code == Code.NOT_FOUND
    with pytest.raises(StatusError, match="has no process e2"):
        await agent.wait(container_id, "e2")
    await agent.exec(container_id, "e2", "true")
    assert await agent.wait(container_id, "e2") == 0
    await agent.remove(container_id)


async def test_addresses_are_randomized_in_containers_though_not_for_crun(agent: Agent) -> None:
    container_id = next(_ids)
    script = "cat /proc/self/personality; grep stack /proc/self/maps"
    await agent.run(container_id, spec("sh", "-c", f"{script}; exec >&-; sleep 1000"))
    said = [await agent.read_all(container_id)]
    for exec_id in ("one", "two"):
        await agent.exec(container_id, exec_id, "sh", "-c", script)
        said.append(await agent.read_all(container_id, exec_id))
    assert {one.splitlines()[0] for one in said} == {b"00000000"}
    assert len({one.splitlines()[1].split()[0] for one in said}) == 3, "the stack is elsewhere each time"
    await agent.remove(container_id)


async def test_twenty_execs_at_once_keep_their_output_apart(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, spec("sleep", "1000"))

    async def one(number: int) -> None:
        exec_id = f"e{number}"
        await agent.exec(container_id, exec_id, "sh", "-c", f"echo {number}; exit {number}")
        assert await agent.wait(container_id, exec_id) == number
        assert await agent.read_all(container_id, exec_id) == f"{number}\n".encode()

    await asyncio.gather(*(one(number) for number in range(20)))
    await agent.remove(container_id)


async def test_term_kills_an_init_that_is_deaf_to_it(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, spec("sleep", "1000"))
    await agent.signal(container_id, signal.SIGTERM)
    assert await agent.wait(container_id) == 128 + signal.SIGKILL
    with pytest.raises(StatusError, match="already finished") as caught:
        await agent.signal(container_id, signal.SIGTERM)
    assert caught.value.code == Code.NOT_FOUND
    await agent.remove(container_id)


async def test_term_reaches_a_handler(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, spec("sh", "-c", "trap 'exit 5' TERM; echo ready; while true; do sleep 0.1; done"))
    assert await agent.read(container_id) == b"ready\n"
    await agent.signal(container_id, signal.SIGTERM)
    assert await agent.wait(container_id) == 5
    await agent.remove(container_id)


async def test_kill_reaches_every_process_of_the_container(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, spec("sleep", "1000"))
    await agent.exec(container_id, "e1", "sleep", "1000")
    await agent.signal(container_id, signal.SIGKILL)
    codes = await asyncio.gather(agent.wait(container_id), agent.wait(container_id, "e1"))
    assert set(codes) == {137}
    await agent.remove(container_id)


async def test_exec_gets_its_own_signal(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, spec("sleep", "1000"))
    await agent.exec(container_id, "e1", "sleep", "1000")
    await agent.signal(container_id, signal.SIGTERM, "e1")
    assert await agent.wait(container_id, "e1") == 128 + signal.SIGTERM
    for number in (-1 & 0xFFFFFFFF, 65):
        with pytest.raises(StatusError) as caught:
            await agent.signal(container_id, number)
        assert caught.value.code == Code.INVALID_ARGUMENT
    await agent.remove(container_id)


async def test_pause_and_resume(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, spec("sh", "-c", "while true; do echo x; sleep 0.05; done"))
    assert await agent.read(container_id)
    await agent.rpc.PauseContainer(pb.PauseContainerRequest(container_id=container_id))
    with pytest.raises(StatusError, match="is paused"):
        await agent.exec(container_id, "e1", "true")
    silence = asyncio.create_task(agent.read(container_id))
    while (await asyncio.wait([silence], timeout=0.5))[0]:
        silence = asyncio.create_task(agent.read(container_id))
    await agent.rpc.ResumeContainer(pb.ResumeContainerRequest(container_id=container_id))
    assert await asyncio.wait_for(silence, 60)
    await agent.rpc.PauseContainer(pb.PauseContainerRequest(container_id=container_id))
    await agent.remove(container_id)


async def test_limits_stats_and_update(agent: Agent) -> None:
    container_id = next(_ids)
    wanted = spec("sleep", "1000")
    wanted["linux"]["resources"] = {"memory": {"limit": 64 << 20}, "pids": {"limit": 50}}
    await agent.run(container_id, wanted)
    request = pb.StatsContainerRequest(container_id=container_id)
    stats = (await agent.rpc.StatsContainer(request)).cgroup_stats
    assert stats.memory_stats.usage.limit == 64 << 20
    assert 0 < stats.memory_stats.usage.usage < 64 << 20
    assert stats.pids_stats.current == 1
    assert stats.pids_stats.limit == 50
    assert stats.cpu_stats.cpu_usage.total_usage > 0
    resources = pb.UpdateContainerRequest(container_id=container_id)
    resources.resources.Memory.Limit = 96 << 20
    await agent.rpc.UpdateContainer(resources)
    stats = (await agent.rpc.StatsContainer(request)).cgroup_stats
    assert stats.memory_stats.usage.limit == 96 << 20
    await agent.remove(container_id)


async def test_the_agent_has_a_reserve_of_memory_and_pids(agent: Agent) -> None:
    files = "/guest/sys/fs/cgroup/kata/memory.max /guest/sys/fs/cgroup/kata/pids.max"
    memory, pids, _, total, _ = (await inspect(agent, f"cat {files}; grep MemTotal /proc/meminfo")).split()
    assert int(memory) < int(total) * 1024 * 7 // 8
    assert int(pids) < 16384
    container_id = next(_ids)
    wanted = spec("sleep", "1000")
    wanted["mounts"] += [{"destination": f"/{name}", "type": "tmpfs", "source": "tmpfs"} for name in "abc"]
    await agent.run(container_id, wanted)
    await agent.exec(container_id, "df", "busybox", "df", "-k", "/a", "/b", "/c")
    sizes = [int(line.split()[1]) << 10 for line in (await agent.read_all(container_id, "df")).splitlines()[1:]]
    assert len(sizes) == 3
    assert sum(sizes) < int(memory), "as the kernel would size them, two would take everything"
    await agent.exec(container_id, "fill", "dd", "if=/dev/zero", "of=/c/file", "bs=1M")
    assert b"No space left on device" in await agent.read_all(container_id, "fill", stderr=True)
    await agent.exec(container_id, "answers", "echo", "yes")
    assert await agent.read_all(container_id, "answers") == b"yes\n"
    await agent.remove(container_id)


async def test_oom_is_told_before_the_exit(agent: Agent) -> None:
    container_id = next(_ids)
    wanted = spec("dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1")
    wanted["linux"]["resources"] = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    order: list[str] = []

    async def oom() -> None:
        event = await agent.rpc.GetOOMEvent(pb.GetOOMEventRequest())
        order.append(f"oom {event.container_id}")

    async def wait() -> None:
        order.append(f"exit {await agent.wait(container_id)}")

    await agent.create(container_id, wanted)
    tasks = [asyncio.create_task(wait()), asyncio.create_task(oom())]
    await agent.start(container_id)
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    assert order == [f"oom {container_id}", "exit 137"]
    await agent.remove(container_id)


async def test_a_quota_is_the_containers_and_not_its_runtimes(agent: Agent) -> None:
    container_id = next(_ids)
    wanted = spec("sleep", "1000")
    wanted["linux"]["resources"] = {"cpu": {"quota": 10_000, "period": 100_000}, "unified": {"cpu.max.burst": "7"}}
    await agent.create(container_id, wanted)
    # The runtime has used more than the quota of a period, and was not throttled.
    look = f"cd /guest/sys/fs/cgroup/kata/{container_id}; grep nr_throttled cpu.stat; cat cpu.max cpu.max.burst"
    assert await inspect(agent, look) == "nr_throttled 0\n10000 100000\n7\n"
    await agent.exec(container_id, "exec", "cat")
    assert (await inspect(agent, look)).endswith("\n10000 100000\n7\n")
    await agent.remove(container_id)


async def test_the_guest_root_disk_is_out_of_reach(agent: Agent) -> None:
    container_id = next(_ids)
    script = "busybox mknod /dev/disk b $(cat /sys/block/vda/dev | busybox tr : ' ') && head -c 1 /dev/disk; echo $?"
    wanted = spec("sh", "-c", script)
    await agent.run(container_id, wanted)
    assert (await agent.read_all(container_id)) == b"1\n"
    assert b"not permitted" in await agent.read_all(container_id, stderr=True)
    await agent.remove(container_id)


async def test_processes_are_shared_when_the_pod_shares_them(agent: Agent) -> None:
    first, second, third = next(_ids), next(_ids), next(_ids)
    await agent.run(first, spec("sleep", "1000"), sandbox_pidns=True)
    await agent.run(second, spec("sh", "-c", "ls -d /proc/[0-9]* | busybox wc -l"), sandbox_pidns=True)
    await agent.run(third, spec("sh", "-c", "echo $$"))
    assert int(await agent.read_all(third)) == 1
    assert int(await agent.read_all(second)) >= 1
    for container_id in (third, second, first):
        await agent.remove(container_id)


async def test_a_lost_caller_leaves_no_half_made_container(guest: Guest) -> None:
    container_id = next(_ids)
    async with guest.connect() as agent:
        task = asyncio.create_task(agent.create(container_id, spec("true")))
        await asyncio.sleep(0.05)
    with pytest.raises(ConnectionClosed):
        await task
    async with guest.connect() as agent:

        async def created() -> bool:
            try:
                await agent.create(container_id, spec("true"))
            except StatusError:
                return False
            return True

        await eventually_async(created, "the name is free again, once the rollback is through")
        await agent.remove(container_id)


async def test_many_containers_and_execs_leave_nothing_behind(agent: Agent) -> None:
    script = (
        "ls /guest/proc/1/fd | busybox wc -l; ls /guest/run/crun /guest/run/kata-containers | busybox wc -l; "
        "busybox wc -l < /guest/proc/1/mountinfo; ls -d /guest/sys/fs/cgroup/kata/*/ | busybox wc -l; "
        "cat /guest/proc/[0-9]*/status | grep -c '^State:.Z'"
    )
    before = await inspect(agent, script)
    for _ in range(3):
        container_id = next(_ids)
        await agent.run(container_id, spec("sleep", "1000"))
        await agent.exec(container_id, "e1", "sh", "-c", "sleep 1000 & sleep 1000 & exit 0")
        await agent.exec(container_id, "t1", "sh", terminal=True)
        assert await agent.wait(container_id, "e1") == 0
        with pytest.raises(StatusError):
            await agent.exec(container_id, "e2", "nonsense")
        with pytest.raises(StatusError):
            await agent.exec(container_id, "e3", "nonsense", terminal=True)
        with pytest.raises(StatusError):
            await agent.create(next(_ids), spec("nonsense", terminal=True))
        await agent.remove(container_id)
    # What was killed with its container may still have to be reaped.
    await eventually_async(lambda: inspect(agent, script), f"as before: {before!r}", lambda seen: seen == before)
