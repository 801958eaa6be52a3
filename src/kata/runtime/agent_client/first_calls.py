"""The first calls to a machine that goes on from a template, made before there is anybody to hear the answers.

They give it randomness and a clock of its own. The agent takes calls in the order of their arrival, so nothing else is
answered before. A restored guest translates all its code anew under emulation, and may as well begin with that while
the host still loads the client.

Imports nothing that takes long to load, so the messages are put together by hand: in kata.protocols' agent.proto,
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
    """What has been said on an agent's channel.

    Attributes:
        reseed, set_time: the streams of the calls.
    """

    connection: Connection
    reseed: int
    set_time: int


def send_first_calls(channel: socket.socket) -> FirstCalls:
    """Make the calls; `AgentClient` goes on from what is returned, and finds out if nobody hears them."""
    connection = Connection(Role.CLIENT)
    seed = os.urandom(_SEED_BYTES)
    seconds, rest = divmod(time.time_ns(), 10**9)
    now = b"\x08" + varint(seconds) + b"\x10" + varint(rest // 1000)
    reseed, first = connection.request(Request(_SERVICE, "ReseedRandomDev", b"\x12" + varint(len(seed)) + seed))
    set_time, second = connection.request(Request(_SERVICE, "SetGuestDateTime", now))
    with contextlib.suppress(OSError):
        # Some hundred bytes into an empty socket: they fit.
        channel.send(first + second)
    return FirstCalls(connection, reseed, set_time)
