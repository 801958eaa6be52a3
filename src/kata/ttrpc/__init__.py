"""ttrpc for Python: containerd's small RPC protocol, client and server, unary and streaming.

Depends on nothing but the standard library, except for `kata.ttrpc.typed`, which is imported by name and needs
google.protobuf. Layers, each usable without the next: `frames` and `envelope` (bytes), `connection` (the protocol, no
I/O), `client` and `server` (asyncio), `typed` (protobuf messages). Each name is loaded with its first use: the package
itself costs nothing to import, for those who need no more than `wire`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kata.ttrpc.client import Client
    from kata.ttrpc.context import CallContext, Handler, Handlers, PeerCredentials, StreamHandler, UnaryHandler
    from kata.ttrpc.errors import (
        CallTimeout,
        Code,
        ConnectionClosed,
        LocalProtocolError,
        MessageTooLarge,
        RemoteProtocolError,
        StatusError,
        TtrpcError,
    )
    from kata.ttrpc.server import Server
    from kata.ttrpc.stream import ClientStream, Stream

_MODULES = {
    "client": ("Client",),
    "context": ("CallContext", "Handler", "Handlers", "PeerCredentials", "StreamHandler", "UnaryHandler"),
    "errors": (
        "CallTimeout",
        "Code",
        "ConnectionClosed",
        "LocalProtocolError",
        "MessageTooLarge",
        "RemoteProtocolError",
        "StatusError",
        "TtrpcError",
    ),
    "server": ("Server",),
    "stream": ("ClientStream", "Stream"),
}

__all__ = [
    "CallContext",
    "CallTimeout",
    "Client",
    "ClientStream",
    "Code",
    "ConnectionClosed",
    "Handler",
    "Handlers",
    "LocalProtocolError",
    "MessageTooLarge",
    "PeerCredentials",
    "RemoteProtocolError",
    "Server",
    "StatusError",
    "Stream",
    "StreamHandler",
    "TtrpcError",
    "UnaryHandler",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(__import__(f"{__name__}.{module}", fromlist=[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
