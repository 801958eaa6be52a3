"""A client that connects again, on the next call, after its connection was lost.

A call is never repeated: whether a lost one was carried out is not known here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from kata.ttrpc.client import Client
from kata.ttrpc.errors import ConnectionClosed, TtrpcError
from kata.ttrpc.stream import ClientStream

Connector = Callable[[], Awaitable[Client]]


class ReconnectingClient:
    """Like `Client`, and made before there is a connection.

    Args:
        connector: makes a connection; tried again when it raises OSError or TtrpcError. It has to have an end of its
            own accord or to bear being cancelled.
        connect_timeout: seconds for all tries on behalf of one call. A call's own timeout counts, too.
        backoff: seconds to wait after the first failed try; doubled each time, up to `max_backoff`.
    """

    def __init__(
        self,
        connector: Connector,
        *,
        connect_timeout: float = 30.0,
        backoff: float = 0.01,
        max_backoff: float = 1.0,
    ) -> None:
        self._connector = connector
        self._connect_timeout = connect_timeout
        self._backoff = backoff
        self._max_backoff = max_backoff
        self._client: Client | None = None
        self._last_error: Exception | None = None
        self._connecting = asyncio.Lock()
        self._closed = False

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes = b"",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> bytes:
        """As `Client.call`; ConnectionClosed also if no connection could be made in time."""
        client, left = await self._connected(timeout)
        return await client.call(service, method, payload, timeout=left, metadata=metadata)

    @asynccontextmanager
    async def stream(
        self,
        service: str,
        method: str,
        payload: bytes = b"",
        *,
        client_streams: bool = True,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncIterator[ClientStream]:
        """As `Client.stream`; ConnectionClosed also if no connection could be made in time."""
        client, left = await self._connected(timeout)
        async with client.stream(
            service, method, payload, client_streams=client_streams, timeout=left, metadata=metadata
        ) as stream:
            yield stream

    async def close(self) -> None:
        """Close the connection, if there is one, for good."""
        self._closed = True
        if self._client is not None:
            await self._client.close()

    async def __aenter__(self) -> ReconnectingClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _connected(self, timeout: float | None) -> tuple[Client, float | None]:
        """An open connection, and what is left of the call's timeout."""
        if self._client is not None and not self._client.closed and not self._closed:
            return self._client, timeout
        limit = self._connect_timeout if timeout is None else min(timeout, self._connect_timeout)
        loop = asyncio.get_running_loop()
        start = loop.time()
        self._last_error = None
        try:
            async with asyncio.timeout(limit):
                # One connects; the others wait, and find the connection made.
                async with self._connecting:
                    client = await self._connect()
        except TimeoutError:
            cause = self._last_error or TimeoutError(f"no connection within {limit:g} s")
            raise ConnectionClosed(cause) from cause
        return client, None if timeout is None else timeout - (loop.time() - start)

    async def _connect(self) -> Client:
        pause = self._backoff
        while not self._closed:
            if self._client is not None and not self._client.closed:
                return self._client
            try:
                self._client = await self._connector()
            except (OSError, TtrpcError) as error:
                self._last_error = error
                await asyncio.sleep(pause)
                pause = min(2 * pause, self._max_backoff)
        if self._client is not None:
            await self._client.close()
        raise ConnectionClosed
