"""Port-forward: connections inside the pod's network namespace are forwarded to the same port in the guest.

Container engines enter the pod's network namespace and connect to localhost, where no process of a VM listens. So a
socket of the shim gets all connections there (`kata.linux.sklookup`), and the agent connects to the same address and
port in the guest.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket

from kata import ttrpc
from kata.runtime.agent_client.client import AgentClient
from kata.ttrpc.relay import reset

log = logging.getLogger(__name__)

#: Concurrent connections of one sandbox; more are refused.
MAX_CONNECTIONS = 128
_MAPPED = "::ffff:"


class PortForward:
    """Forwards connections of one sandbox until it is closed.

    Args:
        agent: the sandbox's.
        listener, link: from `PodNetwork.catch`; owned from here on.
    """

    def __init__(self, agent: AgentClient, listener: socket.socket, link: int) -> None:
        self._agent = agent
        self._listener = listener
        self._own = listener.getsockname()[1]
        self._link = link
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._accepted, sock=self._listener)

    async def close(self) -> None:
        """Close the listener and all connections."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
        if self._server is not None:
            self._server.close()
        self._listener.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address, port = writer.get_extra_info("sockname")[:2]
        if port == self._own or len(self._connections) >= MAX_CONNECTIONS:
            reset(writer)
            return
        address = address.removeprefix(_MAPPED)
        task = asyncio.create_task(self._forward(address, port, reader, writer), name=f"forward to {address} {port}")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _forward(
        self, address: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await self._agent.forward(address, port, reader, writer)
        except (ttrpc.TtrpcError, OSError) as error:
            log.info("port-forward to port %d of %s: %s", port, address, error)
        finally:
            if not writer.is_closing():
                reset(writer)
