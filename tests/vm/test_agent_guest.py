"""The VM around the containers: storages, files, clock, randomness, hooks, the host coming and going, the end."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Iterator

import pytest

from kata.agent.limits import SYSCTLS
from kata.errors import Code
from kata.protocols import agent_pb2 as pb
from kata.protocols import health_pb2
from kata.ttrpc import StatusError
from tests.support.waiting import eventually_async
from tests.vm.guest import SHARED, Agent, Guest, container_spec, make_rootfs, missing

pytestmark = [pytest.mark.vm, pytest.mark.timeout(120)]

ROOTFS = f"{SHARED}/base/rootfs"


async def output(agent: Agent, container_id: str, script: str, **fields: object) -> str:
    wanted = container_spec(ROOTFS, "sh", "-c", script)
    wanted["mounts"].append({"destination": "/run", "type": "bind", "source": "/run", "options": ["rbind", "rslave"]})
    await agent.run(container_id, wanted, **fields)
    text = await agent.read_all(container_id)
    await agent.remove(container_id)
    return text.decode()


async def test_details_and_metrics(agent: Agent) -> None:
    request = pb.GuestDetailsRequest(mem_block_size=True, mem_hotplug_probe=True)
    details = await agent.rpc.GetGuestDetails(request)
    assert details.mem_block_size_bytes >= 1 << 20
    assert details.agent_details.init_daemon
    assert details.agent_details.supports_seccomp
    assert "9p" in details.agent_details.storage_handlers
    text = (await agent.rpc.GetMetrics(pb.GetMetricsRequest())).metrics
    assert "kata_agent_scrape_count " in text
    assert 'kata_guest_meminfo{item="mem_total"} ' in text
    version = await agent.health.Version(health_pb2.CheckRequest())
    assert version.grpc_version == "0.0.1"


async def test_ephemeral_storage_is_shared_and_goes_with_its_last_user(agent: Agent) -> None:
    point = "/run/kata-containers/sandbox/ephemeral/cache"
    storage = pb.Storage(driver="ephemeral", source="tmpfs", fstype="tmpfs", options=["size=1m"], mount_point=point)
    keeper = container_spec(ROOTFS, "sleep", "1000")
    await agent.run("keeper", keeper, storages=[storage])
    count = f"grep -c ' {point} ' /proc/self/mountinfo; cat {point}/word"
    assert await output(agent, "user1", f"echo shared > {point}/word; {count}", storages=[storage]) == "1\nshared\n"
    assert await output(agent, "user2", count, storages=[storage]) == "1\nshared\n"
    await agent.remove("keeper")
    assert await output(agent, "user3", f"grep -c ' {point} ' /proc/self/mountinfo") == "0\n"


async def test_bad_storages_are_refused_and_leave_nothing(agent: Agent) -> None:
    good = pb.Storage(
        driver="ephemeral", source="tmpfs", fstype="tmpfs", mount_point="/run/kata-containers/sandbox/ephemeral/good"
    )
    for bad in (
        pb.Storage(driver="nonsense", mount_point="/run/kata-containers/sandbox/x"),
        pb.Storage(driver="ephemeral", fstype="tmpfs", mount_point="/etc"),
        pb.Storage(driver="ephemeral", fstype="tmpfs", mount_point="/run/kata-containers/../../etc"),
        pb.Storage(driver="local", options=["mode=xyz"], mount_point="/run/kata-containers/sandbox/x"),
    ):
        with pytest.raises(StatusError) as caught:
            await agent.create("refused", container_spec(ROOTFS, "true"), storages=[good, bad])
        assert caught.value.code == Code.INVALID_ARGUMENT, bad
    assert await output(agent, "check", f"grep -c ' {good.mount_point} ' /proc/self/mountinfo") == "0\n"


async def test_overlay_rootfs(agent: Agent, guest: Guest) -> None:
    point = "/run/kata-containers/overlaid/rootfs"
    storage = pb.Storage(
        driver="overlayfs",
        options=[f"lowerdir={ROOTFS}", "io.katacontainers.fs-opt.overlay-rw"],
        mount_point=f"{SHARED}/over/rootfs",
    )
    wanted = container_spec(storage.mount_point, "sh", "-c", "echo new > /word; cat /word")
    await agent.run("overlaid", wanted, storages=[storage])
    assert await agent.read_all("overlaid") == b"new\n"
    assert not (guest.share / "base/rootfs/word").exists()
    await agent.remove("overlaid")
    assert await output(agent, "check", f"ls -d {point} 2>/dev/null; grep -c overlaid /proc/self/mountinfo") == "0\n"


async def test_copied_files_arrive_whole(agent: Agent, guest: Guest) -> None:
    data = os.urandom(300_000)
    for offset in range(0, len(data), 100_000):
        assert not (guest.share / "copies/file").exists()
        await agent.rpc.CopyFile(
            pb.CopyFileRequest(
                path=f"{SHARED}/copies/file", file_size=len(data), file_mode=stat.S_IFREG | 0o640, dir_mode=0o750,
                uid=1, gid=2, offset=offset, data=data[offset : offset + 100_000],
            )
        )  # fmt: skip
    copied = guest.share / "copies/file"
    assert copied.read_bytes() == data
    status = copied.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 1, 2)
    with pytest.raises(StatusError) as caught:
        await agent.rpc.CopyFile(pb.CopyFileRequest(path="/etc/passwd", file_size=1, data=b"x"))
    assert caught.value.code == Code.INVALID_ARGUMENT


async def test_clock_and_randomness_can_be_set(agent: Agent) -> None:
    await agent.rpc.SetGuestDateTime(pb.SetGuestDateTimeRequest(Sec=2_000_000_000, Usec=5))
    assert 0 <= int(await output(agent, "clock", "busybox date +%s")) - 2_000_000_000 < 60
    now = time.time()
    await agent.rpc.SetGuestDateTime(pb.SetGuestDateTimeRequest(Sec=int(now), Usec=0))
    await agent.rpc.ReseedRandomDev(pb.ReseedRandomDevRequest(data=os.urandom(32)))
    for bad in (b"", bytes(10_000)):
        with pytest.raises(StatusError) as caught:
            await agent.rpc.ReseedRandomDev(pb.ReseedRandomDevRequest(data=bad))
        assert caught.value.code == Code.INVALID_ARGUMENT


async def test_processors_that_are_not_there(agent: Agent) -> None:
    await agent.rpc.OnlineCPUMem(pb.OnlineCPUMemRequest(nb_cpus=0))
    with pytest.raises(StatusError) as caught:
        await agent.rpc.OnlineCPUMem(pb.OnlineCPUMemRequest(nb_cpus=1, wait=False))
    assert caught.value.code == Code.DEADLINE_EXCEEDED


async def test_a_second_sandbox_is_refused(agent: Agent) -> None:
    with pytest.raises(StatusError) as caught:
        await agent.create_sandbox(sandbox_id="another")
    assert caught.value.code == Code.ALREADY_EXISTS


async def test_the_agent_rests_while_no_host_is_connected(guest: Guest) -> None:
    async with guest.connect() as agent:
        waiting = asyncio.create_task(agent.rpc.GetOOMEvent(pb.GetOOMEventRequest()))
        before = await processor_time(agent)
    with pytest.raises(Exception, match="clos"):
        await waiting
    await asyncio.sleep(3)
    async with guest.connect() as agent:
        assert await processor_time(agent) - before < 1.5


async def processor_time(agent: Agent) -> float:
    text = (await agent.rpc.GetMetrics(pb.GetMetricsRequest())).metrics
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("kata_agent_total_time "))


async def test_garbage_costs_one_connection_only(guest: Guest) -> None:
    _, writer = await asyncio.open_unix_connection(f"{guest.directory}/rpc")
    writer.write(b"\xff" * 70_000)
    await writer.drain()
    await asyncio.sleep(0.5)
    writer.close()
    await writer.wait_closed()
    async with guest.connect() as agent:
        assert (await agent.health.Check(health_pb2.CheckRequest())).status == 1


def test_an_agent_that_cannot_start_says_why_and_switches_the_vm_off() -> None:
    if lack := missing():
        pytest.skip(f"needs {lack}")
    with Guest("agent.server_addr=virtio-serial://nonsense") as guest:
        assert guest.wait_off(60) == 0
        record = guest.records[-1]
        assert record["level"] == "CRITICAL"
        assert "virtio-serial port nonsense not found (ports: kata.rpc, kata.console)" in record["msg"]


async def test_limits_are_a_large_hosts(agent: Agent) -> None:
    names = " ".join(f"/proc/sys/{name.replace('.', '/')}" for name in SYSCTLS)
    said = (await output(agent, "limits", f"ulimit -Sn; ulimit -Hn; ulimit -u; ulimit -i; cat {names}")).split()
    assert said[:4] == ["1048576", "1048576", "unlimited", "262144"]
    assert said[4:] == [str(value) for value in SYSCTLS.values()]


async def test_a_spec_may_ask_for_more_open_files_than_a_host_usually_allows(agent: Agent) -> None:
    # CRI-O's default, which systemd has from fs.nr_open.
    limit = {"type": "RLIMIT_NOFILE", "hard": 1_073_741_816, "soft": 1_073_741_816}
    await agent.run("files", container_spec(ROOTFS, "sh", "-c", "ulimit -Hn", rlimits=[limit]))
    assert await agent.read_all("files") == b"1073741816\n"
    await agent.remove("files")


async def test_a_privileged_container_mounts_file_systems_itself(agent: Agent) -> None:
    """Mounting asks the kernel for its module, and a loop device for its driver."""
    # Not btrfs and cifs: the former measures for seconds which way to compute checksums is the fastest.
    kinds = ("autofs", "binfmt_misc", "nfs", "nfs4")
    script = "; ".join(
        (
            f"for kind in {' '.join(kinds)}; do busybox mount -t $kind none /tmp 2>/dev/null; done",
            "cat /proc/filesystems",
            "echo content > /image; busybox truncate -s 1M /image; busybox losetup /dev/loop0 /image",
            "head -n 1 /dev/loop0; busybox losetup -d /dev/loop0; busybox rm /image",
        )
    )
    wanted = container_spec(ROOTFS, "sh", "-c", script)
    capabilities = [*wanted["process"]["capabilities"]["bounding"], "CAP_SYS_ADMIN"]
    wanted["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), capabilities)
    wanted["linux"]["devices"] = [{"path": "/dev/loop0", "type": "b", "major": 7, "minor": 0, "fileMode": 0o660}]
    await agent.run("mounts", wanted)
    words = (await agent.read_all("mounts")).decode().split()
    assert set(kinds) <= set(words)
    assert words[-1] == "content", await agent.read_all("mounts", stderr=True)
    await agent.remove("mounts")


KINDS = ("prestart", "poststart", "poststop")


@pytest.fixture(scope="module")
def own() -> Iterator[Guest]:
    """A guest with a debug console, and hooks that note what they are told; the last of these tests ends it."""
    if lack := missing():
        pytest.skip(f"needs {lack}")
    with Guest("agent.debug_console", "agent.nonsense=1") as guest:
        make_rootfs(guest.share, "base")
        for kind in KINDS:
            hook = guest.share / "hooks" / kind / "note"
            hook.parent.mkdir(parents=True)
            # Where the host sees it.
            hook.write_text(f"#!/bin/sh\n/bin/busybox cat >{SHARED}/told-$1\n")
            hook.chmod(0o755)

        async def prepare() -> None:
            async with guest.connect() as agent:
                fields = {"dns": ["nameserver 192.0.2.1"], "guest_hook_path": f"{SHARED}/hooks"}
                await agent.create_sandbox(hostname="pod", sandbox_id="s", **fields)

        asyncio.run(prepare())
        yield guest


async def test_the_debug_console_is_a_root_shell_on_a_terminal(own: Guest) -> None:
    assert "unknown kernel parameters: agent.nonsense" in own.console
    async with own.connect():
        for _ in range(2):
            # The next shell comes when the last one's caller is seen to have left: who is not answered comes again.
            said = await eventually_async(lambda: typed(own, b"tty; echo $((6 * 7)); exit\n"), "a shell")
            assert b"/dev/pts/" in said


async def typed(guest: Guest, line: bytes) -> bytes:
    """What the debug console answers to a line up to "42"; b"" if it does not."""
    reader, writer = await asyncio.open_unix_connection(f"{guest.directory}/debug")
    try:
        writer.write(line)
        async with asyncio.timeout(10):
            return await reader.readuntil(b"\n42")
    except (TimeoutError, asyncio.IncompleteReadError):
        return b""
    finally:
        writer.close()
        await writer.wait_closed()


async def test_hooks_of_the_guest_run_around_a_containers_life(own: Guest) -> None:
    told = {kind: own.share / f"told-{kind}" for kind in KINDS}
    async with own.connect() as agent:
        await agent.create("c1", container_spec(ROOTFS, "sleep", "100"))
        assert '"id": "c1"' in told["prestart"].read_text().replace('":"', '": "')
        assert not told["poststart"].exists()
        await agent.start("c1")
        assert told["poststart"].exists()
        await agent.signal("c1", 9)
        await agent.wait("c1")
        assert not told["poststop"].exists()
        await agent.remove("c1")
        assert told["poststop"].exists()


async def test_destroying_the_sandbox_switches_the_vm_off(own: Guest) -> None:
    async with own.connect() as agent:
        await agent.run("c", container_spec(ROOTFS, "sleep", "1000"))
        await agent.rpc.DestroySandbox(pb.DestroySandboxRequest())
        assert await asyncio.to_thread(own.wait_off, 60) == 0
