"""The client of the guest's agent against agents that answer well, badly, late or not at all: the guest is hostile."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf import empty_pb2

from kata import ttrpc
from kata.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    KataError,
    NotFound,
    Unavailable,
)
from kata.protocols import agent_pb2, health_pb2
from kata.runtime.agent_client import client as module
from kata.runtime.agent_client.client import AgentClient
from kata.ttrpc.typed import handlers

LIMIT_S = 60


class Guest:
    """An agent over a real connection; each test says what it does."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.status = health_pb2.HealthCheckResponse.SERVING
        self.error: ttrpc.StatusError | None = None
        self.accepts: list[int] = []
        self.hangs = False
        self.output: list[bytes] = []
        self.exit_status = 0

    async def check(self, request: Any, ctx: object) -> health_pb2.HealthCheckResponse:
        await self._behave(request)
        return health_pb2.HealthCheckResponse(status=self.status)

    async def start_container(self, request: Any, ctx: object) -> empty_pb2.Empty:
        await self._behave(request)
        return empty_pb2.Empty()

    async def get_oom_event(self, request: Any, ctx: object) -> agent_pb2.OOMEvent:
        self.calls.append(request)
        return agent_pb2.OOMEvent(container_id="c")

    async def write_stdin(self, request: agent_pb2.WriteStreamRequest, ctx: object) -> agent_pb2.WriteStreamResponse:
        await self._behave(request)
        return agent_pb2.WriteStreamResponse(len=self.accepts.pop(0) if self.accepts else len(request.data))

    async def read_stdout(self, request: Any, ctx: object) -> agent_pb2.ReadStreamResponse:
        await self._behave(request)
        return agent_pb2.ReadStreamResponse(data=self.output.pop(0) if self.output else b"")

    async def wait_process(self, request: Any, ctx: object) -> agent_pb2.WaitProcessResponse:
        await self._behave(request)
        return agent_pb2.WaitProcessResponse(status=self.exit_status)

    async def remove_container(self, request: Any, ctx: object) -> empty_pb2.Empty:
        await self._behave(request)
        return empty_pb2.Empty()

    async def _behave(self, request: Any) -> None:
        self.calls.append(request)
        if self.hangs:
            await asyncio.sleep(3600)
        if self.error is not None:
            raise self.error


@pytest.fixture
async def guest() -> Guest:
    return Guest()


@pytest.fixture
async def client(guest: Guest) -> AsyncIterator[AgentClient]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    server = ttrpc.Server(
        {
            **handlers(agent_pb2.DESCRIPTOR.services_by_name["AgentService"], guest),
            **handlers(health_pb2.DESCRIPTOR.services_by_name["Health"], guest),
        }
    )
    serving = asyncio.create_task(server.serve_connection(*await asyncio.open_connection(sock=theirs)))
    client = await AgentClient.connect(ours)
    yield client
    await client.close()
    await server.close()
    await serving


async def test_health(client: AgentClient, guest: Guest) -> None:
    await client.check(LIMIT_S)
    guest.status = health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(Unavailable, match="answers with status 2"):
        await client.check(LIMIT_S)


async def test_silence_ends(client: AgentClient, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    guest.hangs = True
    with pytest.raises(DeadlineExceeded, match="health check: the guest's agent did not answer within 0 s") as caught:
        await client.check(0.05)
    assert caught.value.hint
    with pytest.raises(DeadlineExceeded, match="remove container box"):
        await asyncio.wait_for(client.remove_container("box", timeout=-0.9), LIMIT_S)


async def test_a_deadline_of_the_agents_own(client: AgentClient, guest: Guest) -> None:
    """It has waited for something in vain, and says for what."""
    guest.error = ttrpc.StatusError(ttrpc.Code.DEADLINE_EXCEEDED, "no disk appeared within 3 s")
    with pytest.raises(DeadlineExceeded, match="remove container box: no disk appeared within 3 s"):
        await client.remove_container("box", timeout=LIMIT_S)


async def test_a_lost_connection(client: AgentClient, guest: Guest) -> None:
    guest.hangs = True
    waiting = asyncio.create_task(client.wait_process("box", ""))
    await asyncio.sleep(0.05)
    await client.close()
    for call in (waiting, client.start_container("box"), client.check(1)):
        with pytest.raises(Unavailable, match="the connection to the guest's agent is closed"):
            await call


@pytest.mark.parametrize(
    ("code", "kind"),
    [(5, NotFound), (9, FailedPrecondition), (13, Internal), (2, Internal), (99, Internal)],
)
async def test_errors_keep_their_kind(client: AgentClient, guest: Guest, code: int, kind: type[KataError]) -> None:
    guest.error = ttrpc.StatusError(code, "says the guest")
    with pytest.raises(kind, match=r"^start container box: says the guest$"):
        await client.start_container("box")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("container box is paused", "start container box: it is paused"),
        ("container box: cannot mount its root", "start container box: cannot mount its root"),
        ("container boxer is paused", "start container box: container boxer is paused"),
    ],
)
async def test_an_id_is_named_once(client: AgentClient, guest: Guest, said: str, shown: str) -> None:
    """It has 64 digits as a rule."""
    guest.error = ttrpc.StatusError(9, said)
    with pytest.raises(FailedPrecondition) as caught:
        await client.start_container("box")
    assert caught.value.message == shown


async def test_a_request_that_is_too_large(client: AgentClient) -> None:
    request = agent_pb2.CreateContainerRequest(container_id="box", exec_id="x" * (5 << 20))
    with pytest.raises(
        InvalidArgument, match=r"^create container box: \d+ bytes are too much .* takes 4194304$"
    ) as seen:
        await client.create_container(request, timeout=LIMIT_S)
    assert seen.value.hint
    await client.check(LIMIT_S)


async def test_what_a_guest_says_stays_on_one_bounded_line(client: AgentClient, guest: Guest) -> None:
    """It ends up in the host's logs and on people's terminals."""
    guest.error = ttrpc.StatusError(13, 'x\ntime="…" level=info msg="forged line"\r\x1b[2J' + "y" * 1_000_000)
    with pytest.raises(Internal) as caught:
        await client.start_container("box")
    assert len(caught.value.message) < 5000
    assert caught.value.message.isprintable()
    told = "".join(traceback.format_exception(caught.value))
    assert len(told) < 10_000
    assert "\x1b" not in told


async def test_a_flood_of_out_of_memory_events_is_slowed(
    client: AgentClient, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_OOM_INTERVAL_S", 0.05)
    begun = asyncio.get_running_loop().time()
    count = 0
    async for container_id in client.oom_events():
        assert container_id == "c"
        count += 1
        if count == 5:
            break
    assert asyncio.get_running_loop().time() - begun >= 4 * 0.05
    assert len(guest.calls) == 5


class TestStreams:
    async def test_output_to_its_end(self, client: AgentClient, guest: Guest) -> None:
        guest.output = [b"one", b"two"]
        assert [await client.read_stdout("box", "") for _ in range(3)] == [b"one", b"two", b""]

    @pytest.mark.parametrize("said", ["EOF", "read meet eof"])
    async def test_an_end_that_is_told_as_an_error(self, client: AgentClient, guest: Guest, said: str) -> None:
        """Kata's older agents do so."""
        guest.error = ttrpc.StatusError(13, said)
        assert await client.read_stdout("box", "") == b""

    @pytest.mark.parametrize("name", ["geoffrey", "eof", "read meet eof"])
    async def test_an_error_is_no_end_whatever_the_container_is_called(
        self, client: AgentClient, guest: Guest, name: str
    ) -> None:
        """Output would be cut off, and nobody would hear of it."""
        guest.error = ttrpc.StatusError(13, f"cannot read from {name}: Input/output error")
        with pytest.raises(Internal, match="Input/output error"):
            await client.read_stdout(name, "")

    async def test_input_in_pieces_that_the_guest_takes(self, client: AgentClient, guest: Guest) -> None:
        guest.accepts = [3, 2]
        await client.write_stdin("box", "", b"0123456789")
        assert [call.data for call in guest.calls] == [b"0123456789", b"3456789", b"56789"]

    async def test_input_larger_than_a_message(
        self, client: AgentClient, guest: Guest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "WRITE_SIZE", 4)
        await client.write_stdin("box", "", b"0123456789")
        assert [call.data for call in guest.calls] == [b"0123", b"4567", b"89"]

    @pytest.mark.parametrize("claim", [0, 11, 2**32 - 1])
    async def test_a_guest_that_claims_nonsense(self, client: AgentClient, guest: Guest, claim: int) -> None:
        """Nothing, for ever, would be an endless loop; more than there was would skip input."""
        guest.accepts = [claim] * 3
        with pytest.raises(Unavailable, match=f"invalid answer of {claim} bytes"):
            await asyncio.wait_for(client.write_stdin("box", "", b"0123456789"), LIMIT_S)

    @pytest.mark.parametrize(("said", "status"), [(0, 0), (42, 42), (137, 137), (256, 0), (-1, 255), (2**31 - 1, 255)])
    async def test_an_exit_status_has_eight_bits(
        self, client: AgentClient, guest: Guest, said: int, status: int
    ) -> None:
        guest.exit_status = said
        assert await client.wait_process("box", "") == status
