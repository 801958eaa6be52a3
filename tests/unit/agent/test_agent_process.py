"""The whole agent as an ordinary process on a Unix socket. Containers are tested in a guest."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kata.errors import Code
from kata.protocols import agent_pb2 as pb
from kata.protocols import health_pb2
from kata.ttrpc import Client, StatusError
from kata.ttrpc.typed import Stub
from kata.version import VERSION


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kata.agent", *arguments], capture_output=True, text=True, timeout=30, check=False
    )


def test_version_and_bad_arguments() -> None:
    assert run("--version").stdout == f"kata-agent {VERSION}\n"
    result = run("--nonsense")
    assert (result.returncode, result.stderr.splitlines()[0]) == (2, "kata-agent: unknown argument --nonsense")
    result = run("--server-addr", "tcp://1")
    assert result.returncode == 1
    assert "invalid agent address 'tcp://1'" in result.stderr
    assert "Traceback" not in result.stderr


async def connect(path: Path) -> Client:
    async with asyncio.timeout(30):
        while True:
            try:
                return await Client.connect_unix(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(0.02)


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[tuple[subprocess.Popen[bytes], Stub, Stub]]:
    if os.geteuid():
        pytest.skip("needs root")
    path = tmp_path / "agent.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "kata.agent", f"--server-addr=unix://{path}", f"--state-dir={tmp_path}/state"],
        stderr=subprocess.DEVNULL,
    )
    try:
        async with await connect(path) as client:
            yield (
                process,
                Stub(client, pb.DESCRIPTOR.services_by_name["AgentService"]),
                Stub(client, health_pb2.DESCRIPTOR.services_by_name["Health"]),
            )
    finally:
        process.kill()
        process.wait(10)


async def test_health_and_a_clean_end(agent: tuple[subprocess.Popen[bytes], Stub, Stub], tmp_path: Path) -> None:
    process, _, health = agent
    answer = await health.Check(health_pb2.CheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 10) == 0
    assert not (tmp_path / "agent.sock").exists()


async def test_a_sandbox_is_made_and_unmade(agent: tuple[subprocess.Popen[bytes], Stub, Stub], tmp_path: Path) -> None:
    process, rpc, _ = agent
    name = os.uname().nodename
    shm = f"{tmp_path}/state/kata-containers/sandbox/shm"
    storage = pb.Storage(driver="ephemeral", source="shm", fstype="tmpfs", mount_point=shm)
    request = pb.CreateSandboxRequest(hostname="pod", sandbox_id="s1", storages=[storage], dns=["nameserver 192.0.2.1"])
    await rpc.CreateSandbox(request, timeout=10)
    mounts = Path("/proc/self/mountinfo").read_text()
    assert f" {shm} " in mounts
    assert f" {tmp_path}/state/sandbox-ns/uts " in mounts
    assert os.uname().nodename == name, "an agent that is not PID 1 has renamed its machine"
    with pytest.raises(StatusError) as caught:
        await rpc.CreateSandbox(request, timeout=10)
    assert caught.value.code == Code.ALREADY_EXISTS
    await rpc.DestroySandbox(pb.DestroySandboxRequest(), timeout=10)
    assert await asyncio.to_thread(process.wait, 10) == 0
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize(
    "fields",
    [
        {"hostname": "h" * 65},
        {"sandbox_id": "../x"},
        {"storages": [pb.Storage(driver="nonsense", mount_point="/x")]},
    ],
)
async def test_a_sandbox_that_fails_leaves_nothing(
    agent: tuple[subprocess.Popen[bytes], Stub, Stub], tmp_path: Path, fields: dict[str, object]
) -> None:
    _, rpc, _ = agent
    with pytest.raises(StatusError) as caught:
        await rpc.CreateSandbox(pb.CreateSandboxRequest(**fields), timeout=10)  # type: ignore[arg-type]
    assert caught.value.code == Code.INVALID_ARGUMENT
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    await rpc.CreateSandbox(pb.CreateSandboxRequest(hostname="pod"), timeout=10)
    await rpc.DestroySandbox(pb.DestroySandboxRequest(), timeout=10)


async def test_the_machine_of_an_ordinary_process_is_left_alone(
    agent: tuple[subprocess.Popen[bytes], Stub, Stub],
) -> None:
    _, rpc, _ = agent
    for call, request in (
        (rpc.SetGuestDateTime, pb.SetGuestDateTimeRequest(Sec=1)),
        (rpc.OnlineCPUMem, pb.OnlineCPUMemRequest(nb_cpus=1)),
        (rpc.CreateSandbox, pb.CreateSandboxRequest(kernel_modules=[pb.KernelModule(name="dummy")])),
        (rpc.CreateContainer, pb.CreateContainerRequest(container_id="c1")),
    ):
        with pytest.raises(StatusError) as caught:
            await call(request, timeout=10)
        assert caught.value.code == Code.FAILED_PRECONDITION


async def test_unknown_containers_and_malformed_requests(agent: tuple[subprocess.Popen[bytes], Stub, Stub]) -> None:
    _, rpc, _ = agent
    for call, request in (
        (rpc.StartContainer, pb.StartContainerRequest(container_id="none")),
        (rpc.WaitProcess, pb.WaitProcessRequest(container_id="none")),
        (rpc.ReadStdout, pb.ReadStreamRequest(container_id="none", len=1)),
        (rpc.SignalProcess, pb.SignalProcessRequest(container_id="none", signal=9)),
    ):
        with pytest.raises(StatusError, match="container none does not exist") as caught:
            await call(request, timeout=10)
        assert caught.value.code == Code.NOT_FOUND
