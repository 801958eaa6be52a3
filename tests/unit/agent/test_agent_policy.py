"""The agent's policy: the whole agent as a process that is given one, and what stands before the handlers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kata.agent.policy import Guard
from kata.errors import Code, PermissionDenied
from kata.protocols import agent_pb2 as pb
from kata.protocols import forward, health_pb2, processes
from kata.ttrpc import CallContext, Client, Handler, StatusError, StreamHandler
from kata.ttrpc.context import Answer
from kata.ttrpc.stream import Stream
from kata.ttrpc.typed import Stub
from tests.unit.agent.test_agent_process import connect

AGENT = "grpc.AgentService"
POLICY = """
[endpoints]
allowed = ["GuestDetailsRequest", "StatsContainerRequest"]
[[rules]]
name = "web"
endpoint = "StatsContainerRequest"
[rules.fields]
container_id = "web"
"""
BLOCKED = "ExecProcessRequest is blocked by policy: it is not among the allowed endpoints"


@asynccontextmanager
async def agent(directory: Path, environment: dict[str, str] | None = None) -> AsyncIterator[tuple[Stub, Client]]:
    path = directory / "agent.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "kata.agent", f"--server-addr=unix://{path}", f"--state-dir={directory}/state"],
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    try:
        async with await connect(path) as client:
            yield Stub(client, pb.DESCRIPTOR.services_by_name["AgentService"]), client
    finally:
        process.kill()
        process.wait(10)


async def refused(call: object) -> tuple[int, str]:
    with pytest.raises(StatusError) as caught:
        await call  # type: ignore[misc]
    return caught.value.code, caught.value.message


async def test_a_policy_is_set_once_and_then_decides(tmp_path: Path) -> None:
    async with agent(tmp_path) as (rpc, client):
        execution, stats = pb.ExecProcessRequest(container_id="web"), pb.StatsContainerRequest(container_id="web")
        assert (await refused(rpc.ExecProcess(execution)))[0] == Code.INVALID_ARGUMENT, "there is no policy yet"
        code, message = await refused(rpc.SetPolicy(pb.SetPolicyRequest(policy="[rules]\n")))
        assert (code, message) == (Code.INVALID_ARGUMENT, "policy: [[rules]] are no list of at most 1000 tables")
        await rpc.SetPolicy(pb.SetPolicyRequest(policy=POLICY))
        assert await refused(rpc.ExecProcess(execution)) == (Code.PERMISSION_DENIED, BLOCKED)
        assert (await refused(rpc.StatsContainer(stats)))[0] == Code.NOT_FOUND, "it is allowed, and there is none"
        stats.container_id = "other"
        told = "StatsContainerRequest is blocked by policy: rule 'web': container_id is 'other', not 'web'"
        assert await refused(rpc.StatsContainer(stats)) == (Code.PERMISSION_DENIED, told)
        code, message = await refused(rpc.SetPolicy(pb.SetPolicyRequest(policy="")))
        assert (code, message) == (Code.FAILED_PRECONDITION, "the policy is set already, and stays")
        assert (await rpc.GetGuestDetails(pb.GuestDetailsRequest())).agent_details.version
        health = Stub(client, health_pb2.DESCRIPTOR.services_by_name["Health"])
        assert (await health.Check(health_pb2.CheckRequest())).status == 1


async def test_a_file_may_have_it_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "policy").write_text(POLICY)
    async with agent(tmp_path, {"KATA_AGENT_POLICY_FILE": f"{tmp_path}/policy"}) as (rpc, _):
        execution = pb.ExecProcessRequest(container_id="web")
        assert await refused(rpc.ExecProcess(execution)) == (Code.PERMISSION_DENIED, BLOCKED)
        code, _ = await refused(rpc.SetPolicy(pb.SetPolicyRequest(policy="")))
        assert code == Code.FAILED_PRECONDITION


@pytest.mark.parametrize(("content", "told"), [(None, "No such file"), ("x", "the policy is not TOML")])
def test_an_agent_does_not_start_without_the_policy_that_it_should_have(
    tmp_path: Path, content: str | None, told: str
) -> None:
    if content is not None:
        (tmp_path / "policy").write_text(content)
    done = subprocess.run(
        [sys.executable, "-m", "kata.agent", f"--server-addr=unix://{tmp_path}/a", f"--state-dir={tmp_path}/state"],
        env={"KATA_AGENT_POLICY_FILE": f"{tmp_path}/policy"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


class Calls:
    """Handlers that count."""

    def __init__(self) -> None:
        self.outputs: list[Answer] = [(b"\x0a\x03", b"abc"), b""]
        self.asked: list[str] = []
        self.handlers: dict[tuple[str, str], Handler] = {
            (AGENT, "ReadStdout"): self.read,
            (AGENT, "GetGuestDetails"): self.other,
            (processes.SERVICE, processes.LIST): self.other,
            (processes.SERVICE, processes.DRAINED): self.other,
            (forward.SERVICE, forward.CONNECT): StreamHandler(self.stream),
        }

    async def read(self, ctx: CallContext, payload: bytes) -> Answer:
        return self.outputs.pop(0)

    async def other(self, ctx: CallContext, payload: bytes) -> Answer:
        return b"answer"

    async def stream(self, ctx: CallContext, stream: Stream) -> bytes | None:
        return b"answer"

    async def call(self, *key: str) -> Answer | None:
        handler = self.handlers[key[0], key[1]]
        ctx = CallContext(key[0], key[1], {})
        stream: Stream = None  # type: ignore[assignment]
        return await (handler.run(ctx, stream) if isinstance(handler, StreamHandler) else handler(ctx, b""))


async def test_output_that_nobody_may_read_is_thrown_away_and_has_an_end() -> None:
    """A process that writes goes on, and the host takes it for one that has said nothing."""
    calls = Calls()
    Guard(calls.handlers).set("[endpoints]\nallowed = []\n")
    assert await calls.call(AGENT, "ReadStdout") == b""
    assert calls.outputs == []


async def test_calls_of_this_projects_own() -> None:
    calls = Calls()
    Guard(calls.handlers).set("[endpoints]\nallowed = []\n")
    for key, endpoint in (
        ((processes.SERVICE, processes.LIST), "kata.Processes.List"),
        ((forward.SERVICE, forward.CONNECT), "kata.Forward.Connect"),
    ):
        with pytest.raises(PermissionDenied, match=f"{endpoint} is blocked by policy"):
            await calls.call(*key)
    assert await calls.call(processes.SERVICE, processes.DRAINED) == b"answer"
    calls = Calls()
    Guard(calls.handlers).set('[endpoints]\nallowed = ["kata.Processes.List", "kata.Forward.Connect"]\n')
    for key in ((processes.SERVICE, processes.LIST), (forward.SERVICE, forward.CONNECT)):
        assert await calls.call(*key) == b"answer"


def test_what_is_allowed_anyway_has_nothing_before_it() -> None:
    calls = Calls()
    before = dict(calls.handlers)
    Guard(calls.handlers).set("")
    assert calls.handlers == before
