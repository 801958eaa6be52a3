"""The first calls to a restored VM, and their answers, through a real connection to an agent that is not one."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest
from google.protobuf import empty_pb2

from kata import ttrpc
from kata.errors import Internal, Unavailable
from kata.protocols import agent_pb2
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.agent_client.first_calls import send_first_calls
from kata.ttrpc.typed import handlers
from tests.support.waiting import eventually_async

LIMIT_S = 60


class Guest:
    """Takes the two calls and keeps them."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.calls: list[Any] = []
        self.refuses = refuses

    async def reseed_random_dev(self, request: agent_pb2.ReseedRandomDevRequest, ctx: object) -> empty_pb2.Empty:
        self.calls.append(request)
        if self.refuses:
            raise ttrpc.StatusError(13, "no randomness")
        return empty_pb2.Empty()

    async def set_guest_date_time(self, request: agent_pb2.SetGuestDateTimeRequest, ctx: object) -> empty_pb2.Empty:
        self.calls.append(request)
        return empty_pb2.Empty()


async def serving(guest: Guest, theirs: socket.socket) -> tuple[ttrpc.Server, asyncio.Task[None]]:
    theirs.setblocking(False)
    server = ttrpc.Server(handlers(agent_pb2.DESCRIPTOR.services_by_name["AgentService"], guest))
    return server, asyncio.create_task(server.serve_connection(*await asyncio.open_connection(sock=theirs)))


async def test_the_agent_gets_randomness_first_and_then_the_time() -> None:
    ours, theirs = socket.socketpair()
    before = time.time_ns()
    first_calls = send_first_calls(ours)
    guest = Guest()
    server, task = await serving(guest, theirs)
    client = await AgentClient.after_first_calls(ours, first_calls)
    # The answers may be there long before somebody asks for them.
    await eventually_async(lambda: guest.calls, "the first calls", lambda calls: len(calls) == 2)
    await asyncio.sleep(0.02)
    await client.made_unique(first_calls)
    reseed, clock = guest.calls
    assert len(reseed.data) == 64
    assert reseed.data != bytes(64)
    assert 0 <= clock.Sec * 10**9 + clock.Usec * 1000 - before // 1000 * 1000 < 10**9
    # The connection goes on from there.
    await client.set_time(time.time_ns())
    assert len(guest.calls) == 3
    await client.close()
    await server.close()
    await task


def test_no_two_vms_get_the_same_randomness() -> None:
    said = set()
    for _ in range(20):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            send_first_calls(ours)
            said.add(theirs.recv(1000)[:120])
    assert len(said) == 20


async def test_a_guest_without_randomness_is_refused() -> None:
    ours, theirs = socket.socketpair()
    first_calls = send_first_calls(ours)
    server, task = await serving(Guest(refuses=True), theirs)
    client = await AgentClient.after_first_calls(ours, first_calls)
    with pytest.raises(Internal, match="reseed the random source: no randomness"):
        await client.made_unique(first_calls)
    await client.close()
    await server.close()
    await task


async def test_nobody_there_is_found_out_by_the_answer() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    first_calls = send_first_calls(ours)
    client = await AgentClient.after_first_calls(ours, first_calls)
    with pytest.raises(Unavailable, match="the connection to the guest's agent is closed"):
        await client.made_unique(first_calls)
    await client.close()
