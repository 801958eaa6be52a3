"""A ttrpc server on the host that passes each call on to the agent in the guest, and its answer back, as they are.

The agent has one channel, which is this process's; through the socket, programs of the host share it. A call keeps its
deadline, its metadata and its bytes; an error keeps its code, text and details.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal

from kata.errors import KataError
from kata.protocols import agent_pb2, bound, health_pb2, processes
from kata.runtime.agent_client.client import AgentClient
from kata.ttrpc import CallContext, ConnectionClosed, Handler, Server, StatusError
from kata.ttrpc.errors import Code

log = logging.getLogger(__name__)

#: In the sandbox's state directory.
SOCKET = "agent.sock"
#: Calls in flight on one connection: a process takes up to four.
_MAX_CALLS = 256
#: Seconds for a process to end after SIGKILL.
_KILL_TIMEOUT_S = 10.0


class AgentSocket:
    """The server of one sandbox.

    Args:
        directory: the sandbox's state directory.
        agent: in the guest.
    """

    def __init__(self, directory: str, agent: AgentClient) -> None:
        self._path = os.path.join(directory, SOCKET)
        self._agent = agent
        self._opening = asyncio.Lock()
        self._server: Server | None = None
        self._bound: set[asyncio.Task[None]] = set()

    async def open(self) -> str:
        """Listen, unless it does so already; returns the socket's path. Raises OSError."""
        async with self._opening:
            if self._server is None:
                server = Server(self._handlers(), max_calls=_MAX_CALLS)
                await server.serve_unix(self._path)
                self._server = server
        return self._path

    async def close(self) -> None:
        """Stop listening, end all connections and remove the socket. Idempotent."""
        if self._server is not None:
            await self._server.close()
        for task in self._bound:
            task.cancel()
        await asyncio.gather(*self._bound, return_exceptions=True)

    def _handlers(self) -> dict[tuple[str, str], Handler]:
        services = (
            agent_pb2.DESCRIPTOR.services_by_name["AgentService"],
            health_pb2.DESCRIPTOR.services_by_name["Health"],
        )
        calls = [(service.full_name, method.name) for service in services for method in service.methods]
        calls += [(processes.SERVICE, method) for method in (processes.DRAINED, processes.RELEASE, processes.LIST)]
        found: dict[tuple[str, str], Handler] = dict.fromkeys(calls, self._pass_on)
        found["grpc.AgentService", "ExecProcess"] = self._exec
        return found

    async def _pass_on(self, ctx: CallContext, payload: bytes) -> bytes:
        try:
            return await self._agent.client.call(
                ctx.service, ctx.method, payload, timeout=ctx.remaining(), metadata=ctx.metadata
            )
        except ConnectionClosed as error:
            raise StatusError(Code.UNAVAILABLE, "the connection to the guest's agent is closed") from error

    async def _exec(self, ctx: CallContext, payload: bytes) -> bytes:
        """ExecProcess; a process that is bound to its connection is killed when that ends."""
        if ctx.metadata.get(bound.KEY) != bound.CONNECTION:
            return await self._pass_on(ctx, payload)
        starting = asyncio.ensure_future(self._pass_on(ctx, payload))
        task = asyncio.create_task(self._end_with(ctx.disconnected, starting, payload))
        self._bound.add(task)
        task.add_done_callback(self._bound.discard)
        # The caller may go before the agent has answered: then the process is there all the same.
        return await asyncio.shield(starting)

    async def _end_with(self, gone: asyncio.Event, starting: asyncio.Future[bytes], payload: bytes) -> None:
        await asyncio.wait({starting})
        if starting.cancelled() or starting.exception() is not None:
            return
        request = agent_pb2.ExecProcessRequest.FromString(payload)
        await gone.wait()
        ids = request.container_id, request.exec_id
        with contextlib.suppress(KataError, TimeoutError):  # it has ended, or the guest has
            await self._agent.signal_process(*ids, signal.SIGKILL)
            log.info("exec %s of container %s is killed: its client has gone", request.exec_id, request.container_id)
            # The agent keeps a process until somebody has waited for it.
            async with asyncio.timeout(_KILL_TIMEOUT_S):
                await self._agent.wait_process(*ids)
