"""ttrpc for Python: containerd's small RPC protocol, client and server, unary and streaming.

Depends on nothing but the standard library, except for `kata.ttrpc.typed`, which is imported by name and needs
google.protobuf. Layers, each usable without the next: `frames` and `envelope` (bytes), `connection` (the protocol, no
I/O), `client` and `server` (asyncio), `typed` (protobuf messages).
"""

from kata.ttrpc.client import Client
from kata.ttrpc.context import CallContext, Handler, Handlers, PeerCredentials, StreamHandler, UnaryHandler
from kata.ttrpc.errors import (
    Code,
    ConnectionClosed,
    LocalProtocolError,
    MessageTooLarge,
    RemoteProtocolError,
    StatusError,
    TtrpcError,
)
from kata.ttrpc.reconnect import ReconnectingClient
from kata.ttrpc.server import Server
from kata.ttrpc.stream import ClientStream, Stream

__all__ = [
    "CallContext",
    "Client",
    "ClientStream",
    "Code",
    "ConnectionClosed",
    "Handler",
    "Handlers",
    "LocalProtocolError",
    "MessageTooLarge",
    "PeerCredentials",
    "ReconnectingClient",
    "RemoteProtocolError",
    "Server",
    "StatusError",
    "Stream",
    "StreamHandler",
    "TtrpcError",
    "UnaryHandler",
]
