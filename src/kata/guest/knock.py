"""A first call to an agent, made before there is anybody to hear the answer.

A restored guest translates all its code anew under emulation, and may as well begin with that while the host still
loads the client. Imports nothing that takes long to load.
"""

from __future__ import annotations

import socket

from kata.ttrpc.connection import Connection, Role
from kata.ttrpc.envelope import Request


def knock(channel: socket.socket) -> Connection:
    """Ask for the agent's health; returns what `AgentClient.connect` has to go on from. Raises OSError."""
    connection = Connection(Role.CLIENT)
    _, frame = connection.request(Request("grpc.Health", "Check"))
    # A few bytes into an empty socket: they fit.
    channel.send(frame)
    return connection
