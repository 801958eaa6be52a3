"""What a running sandbox answers to commands on its host: management.proto, on a socket in its state directory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kata.runtime.agent_client.client import AgentClient
from kata.runtime.sandbox.grpc_status import to_status
from kata.ttrpc import CallContext, Handler, Server
from kata.ttrpc.context import Answer

if TYPE_CHECKING:
    from google.protobuf import empty_pb2

    from kata.protocols import agent_pb2, management_pb2
    from kata.runtime.devices.direct_volumes import Volumes

#: In the sandbox's state directory.
SOCKET = "manage.sock"
#: The services of management.proto and their RPCs.
SERVICES = {
    "kata.management.Volumes": ("Stats", "Resize"),
    "kata.management.PacketFilter": ("GetIPTables", "SetIPTables"),
    "kata.management.Sandbox": ("Inspect",),
}


class Management:
    """The server of one sandbox. What RPCs need is imported with the first one: most sandboxes never get any.

    Args:
        directory: the sandbox's state directory.
        agent: of its guest.
        volumes: gives its direct volumes.
        describe: gives what `kata inspect` prints, as `Sandbox.describe`.
    """

    def __init__(
        self,
        directory: str,
        agent: AgentClient,
        volumes: Callable[[], Volumes],
        describe: Callable[[], dict[str, Any]],
    ) -> None:
        self._path = os.path.join(directory, SOCKET)
        self._agent = agent
        self._volumes = volumes
        self._describe = describe
        self._handlers: dict[tuple[str, str], Handler] = {}
        rpcs = [(service, method) for service, methods in SERVICES.items() for method in methods]
        self._server = Server(dict.fromkeys(rpcs, self._answer), to_status=to_status)

    async def serve(self) -> None:
        """Begin to listen. Raises OSError."""
        await self._server.serve_unix(self._path)

    async def close(self) -> None:
        """Stop listening and remove the socket."""
        await self._server.close()

    async def _answer(self, ctx: CallContext, payload: bytes) -> Answer:
        if not self._handlers:
            from kata.protocols import management_pb2
            from kata.ttrpc.typed import handlers

            services = management_pb2.DESCRIPTOR.services_by_name
            self._handlers.update(handlers(services["PacketFilter"], PacketFilter(self._agent)))
            self._handlers.update(handlers(services["Volumes"], self._volumes()))
            self._handlers.update(handlers(services["Sandbox"], Inspection(self._describe)))
        handler = self._handlers[ctx.service, ctx.method]
        assert callable(handler), "all RPCs are unary"
        return await handler(ctx, payload)


class Inspection:
    """`kata.management.Sandbox`."""

    def __init__(self, describe: Callable[[], dict[str, Any]]) -> None:
        self._describe = describe

    async def inspect(self, request: empty_pb2.Empty, ctx: CallContext) -> management_pb2.Description:
        """What the sandbox knows of itself."""
        from kata.protocols import management_pb2

        return management_pb2.Description(json=json.dumps(self._describe()))


class PacketFilter:
    """`kata.management.PacketFilter`, passed on to the guest."""

    def __init__(self, agent: AgentClient) -> None:
        self._agent = agent

    async def get_ip_tables(
        self, request: agent_pb2.GetIPTablesRequest, ctx: CallContext
    ) -> agent_pb2.GetIPTablesResponse:
        """The guest's rules, as iptables-save(8) prints them."""
        return await self._agent.ip_tables(request)

    async def set_ip_tables(
        self, request: agent_pb2.SetIPTablesRequest, ctx: CallContext
    ) -> agent_pb2.SetIPTablesResponse:
        """Replace the guest's rules, as iptables-restore(8) reads them."""
        return await self._agent.set_ip_tables(request)
