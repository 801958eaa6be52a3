"""The channel that client and server share: it closes whatever its peer does."""

from __future__ import annotations

import asyncio
import socket

import pytest

from kata.ttrpc.channel import Channel


@pytest.mark.parametrize("reads", [True, False], ids=["a peer that takes the rest", "a peer that does not"])
async def test_close_with_a_full_buffer(reads: bool) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    channel = Channel(*await asyncio.open_connection(sock=ours))
    channel.post(b"x" * (4 << 20))
    closing = asyncio.create_task(channel.close(60 if reads else 0.1))
    taken = 0
    while reads and (data := await asyncio.get_running_loop().sock_recv(theirs, 1 << 20)):
        taken += len(data)
    async with asyncio.timeout(60):
        await closing
    assert taken == (4 << 20 if reads else 0)
    theirs.close()
