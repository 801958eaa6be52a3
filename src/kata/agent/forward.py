"""Connections to the pod's ports on behalf of the host: the guest's end of `kubectl port-forward`."""

from __future__ import annotations

import asyncio
import os

from kata.errors import InvalidArgument, Unavailable
from kata.protocols.forward import parse_destination
from kata.ttrpc import CallContext, Stream
from kata.ttrpc.relay import relay

#: A program in the same guest answers at once or not at all.
_TIMEOUT_S = 10.0


async def connect(ctx: CallContext, stream: Stream) -> None:
    """The handler of `kata.protocols.forward`: all containers share the guest's network, and so does the agent.

    Raises:
        InvalidArgument: the request names no port.
        Unavailable: nothing listens there, or the connection broke.
    """
    request = await stream.receive()
    if request is None:
        raise InvalidArgument("the request names no port")
    address, port = parse_destination(request)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(address, port)
    except TimeoutError:
        raise Unavailable(f"port {port} of {address} does not answer within {_TIMEOUT_S:g} s") from None
    except OSError as error:
        # asyncio's text says less than the number.
        raise Unavailable(f"port {port} of {address}: {os.strerror(error.errno or 0)}") from None
    try:
        await relay(stream, reader, writer)
    except OSError as error:
        raise Unavailable(f"port {port} of {address}: {error.strerror or error}") from None
