"""The first calls to the agent of a restored VM, sent before there is a client for the answers.

They give it its own randomness and clock. The agent answers calls in the order of their arrival, so these come first.
Under emulation, a restored guest translates its code again, which it begins here while the host still loads the client.

Imports nothing slow, so the messages are encoded by hand: in kata.protocols' agent.proto,
ReseedRandomDevRequest { bytes data = 2; } and SetGuestDateTimeRequest { int64 Sec = 1; int64 Usec = 2; }.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass

from kata.ttrpc.connection import Connection, Role
from kata.ttrpc.envelope import Request
from kata.ttrpc.wire import varint

_SERVICE = "grpc.AgentService"
_SEED_BYTES = 64


@dataclass(frozen=True)
class FirstCalls:
    """What was sent on an agent's channel.

    Attributes:
        connection: its state, for the client.
        reseed, set_time: the stream ids of the calls.
    """

    connection: Connection
    reseed: int
    set_time: int


def send_first_calls(channel: socket.socket) -> FirstCalls:
    """Send the calls. `AgentClient` continues with the result, and notices if the channel is closed."""
    connection = Connection(Role.CLIENT)
    seed = os.urandom(_SEED_BYTES)
    seconds, rest = divmod(time.time_ns(), 10**9)
    now = b"\x08" + varint(seconds) + b"\x10" + varint(rest // 1000)
    reseed, first = connection.request(Request(_SERVICE, "ReseedRandomDev", b"\x12" + varint(len(seed)) + seed))
    set_time, second = connection.request(Request(_SERVICE, "SetGuestDateTime", now))
    with contextlib.suppress(OSError):
        # A hundred bytes fit into an empty socket.
        channel.send(first + second)
    return FirstCalls(connection, reseed, set_time)
