"""Protobuf services on top of `kata.ttrpc`: a client stub, and handlers from an object with a method for each RPC.

Both work from the service's descriptor, so no generated stubs are needed:

    health = Stub(client, health_pb2.DESCRIPTOR.services_by_name["Health"])
    answer = await health.Check(health_pb2.CheckRequest(), timeout=5)

    class Health:
        async def check(self, request, ctx): return health_pb2.HealthCheckResponse(status=1)

    server = Server(handlers(health_pb2.DESCRIPTOR.services_by_name["Health"], Health()))

Runs with google.protobuf 4.21 and later.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf import message_factory, symbol_database
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from kata.ttrpc.context import CallContext, Handler, StreamHandler, UnaryHandler
from kata.ttrpc.errors import Code, StatusError
from kata.ttrpc.stream import ClientStream, Stream

if TYPE_CHECKING:
    from kata.ttrpc.client import Client


class Rpc(NamedTuple):
    """One RPC of a service, read from its descriptor.

    Attributes:
        service, name: full name of the service, name of the RPC.
        request, response: message classes.
        client_streams, server_streams: which sides send a stream of messages.
    """

    service: str
    name: str
    request: type[Message]
    response: type[Message]
    client_streams: bool
    server_streams: bool

    @property
    def streams(self) -> bool:
        """Whether either side sends a stream."""
        return self.client_streams or self.server_streams


def rpcs(service: ServiceDescriptor) -> dict[str, Rpc]:
    """The RPCs of a service, by name."""
    return {
        method.name: Rpc(
            service.full_name,
            method.name,
            _message_class(method.input_type),
            _message_class(method.output_type),
            *_streams(method),
        )
        for method in service.methods
    }


class Stub:
    """A client's view of a service: each RPC is an attribute by its name in the .proto file.

        await stub.Check(request, timeout=…, metadata=…) -> answer         a unary RPC
        async with stub.Watch(request, timeout=…) as stream:               a streaming RPC
            async for message in stream: …                                 (see `TypedStream`)

    Errors are those of `Client.call`. An answer that cannot be decoded is a StatusError with INTERNAL.
    """

    def __init__(self, client: Client, service: ServiceDescriptor) -> None:
        self._client = client
        self._rpcs = rpcs(service)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # Private names are not RPCs; without this, copying a stub would recurse.
        if name.startswith("_") or name not in self._rpcs:
            raise AttributeError(f"no RPC {name!r} in the service")
        rpc = self._rpcs[name]

        async def call(
            request: Message, *, timeout: float | None = None, metadata: Mapping[str, str] | None = None
        ) -> Message:
            payload = _serialize(rpc.request, request)
            answer = await self._client.call(rpc.service, rpc.name, payload, timeout=timeout, metadata=metadata)
            return _parse(rpc.response, answer, Code.INTERNAL)

        @asynccontextmanager
        async def stream(
            request: Message | None = None, *, timeout: float | None = None, metadata: Mapping[str, str] | None = None
        ) -> AsyncIterator[TypedStream]:
            payload = b"" if request is None else _serialize(rpc.request, request)
            async with self._client.stream(
                rpc.service,
                rpc.name,
                payload,
                client_streams=rpc.client_streams,
                timeout=timeout,
                metadata=metadata,
            ) as raw:
                yield TypedStream(raw, rpc)

        found = stream if rpc.streams else call
        setattr(self, name, found)  # the next access does not come here
        return found

    def call(self, name: str, request: Message, **options: Any) -> Awaitable[Any]:
        """The unary RPC of that name. Raises AttributeError if there is none."""
        rpc: Callable[..., Awaitable[Any]] = getattr(self, name)
        return rpc(request, **options)


class TypedStream:
    """A streaming RPC of protobuf messages, on top of `ClientStream`."""

    def __init__(self, stream: ClientStream, rpc: Rpc) -> None:
        self._stream = stream
        self._rpc = rpc

    async def send(self, message: Message) -> None:
        """Send a message; see `ClientStream.send`."""
        await self._stream.send(_serialize(self._rpc.request, message))

    async def close_send(self) -> None:
        """See `ClientStream.close_send`."""
        await self._stream.close_send()

    def __aiter__(self) -> TypedStream:
        return self

    async def __anext__(self) -> Any:
        return _parse(self._rpc.response, await self._stream.__anext__(), Code.INTERNAL)

    async def result(self) -> Any:
        """The one answer to a stream of requests; see `ClientStream.result`."""
        return _parse(self._rpc.response, await self._stream.result(), Code.INTERNAL)


def handlers(service: ServiceDescriptor, implementation: object) -> dict[tuple[str, str], Handler]:
    """Handlers for those RPCs of the service that the object has a method for.

    Methods are named in snake case: GetOOMEvent is `get_oom_event`. RPCs without a method stay UNIMPLEMENTED.

        async def foo(self, request, ctx) -> answer                             rpc Foo(A) returns (B)
        async def foo(self, request, ctx): yield answer …                       rpc Foo(A) returns (stream B)
        async def foo(self, requests, ctx) -> answer                            rpc Foo(stream A) returns (B)
        async def foo(self, requests, ctx): async for … in requests: yield …    rpc Foo(stream A) returns (stream B)

    A request that cannot be decoded is answered with INVALID_ARGUMENT.
    """
    found: dict[tuple[str, str], Handler] = {}
    for rpc in rpcs(service).values():
        function = getattr(implementation, snake_case(rpc.name), None)
        if function is not None:
            found[rpc.service, rpc.name] = _stream_handler(rpc, function) if rpc.streams else _unary(rpc, function)
    return found


def snake_case(name: str) -> str:
    """`CreateContainer` → `create_container`, `AddARPNeighbors` → `add_arp_neighbors`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _unary(rpc: Rpc, function: Callable[[Any, CallContext], Awaitable[Any]]) -> UnaryHandler:
    async def handle(ctx: CallContext, payload: bytes) -> bytes:
        answer = await function(_parse(rpc.request, payload, Code.INVALID_ARGUMENT), ctx)
        return _serialize(rpc.response, answer)

    return handle


def _stream_handler(rpc: Rpc, function: Callable[[Any, CallContext], Any]) -> StreamHandler:
    async def run(ctx: CallContext, stream: Stream) -> bytes | None:
        argument: Any = _requests(rpc, stream)
        if not rpc.client_streams:
            argument = _parse(rpc.request, await stream.receive() or b"", Code.INVALID_ARGUMENT)
        if not rpc.server_streams:
            return _serialize(rpc.response, await function(argument, ctx))
        answers = function(argument, ctx)
        try:
            async for answer in answers:
                await stream.send(_serialize(rpc.response, answer))
        finally:
            await answers.aclose()
        return None

    return StreamHandler(run)


async def _requests(rpc: Rpc, stream: Stream) -> AsyncIterator[Message]:
    async for payload in stream:
        yield _parse(rpc.request, payload, Code.INVALID_ARGUMENT)


def _serialize(expected: type[Message], message: Message) -> bytes:
    if not isinstance(message, expected):
        raise TypeError(f"expected a {expected.DESCRIPTOR.full_name}, got {type(message).__name__}")
    return message.SerializeToString()


def _parse(expected: type[Message], payload: bytes, code: Code) -> Message:
    try:
        return expected.FromString(payload)
    except DecodeError as error:
        raise StatusError(code, f"malformed {expected.DESCRIPTOR.full_name}: {error}") from error


def _streams(method: MethodDescriptor) -> tuple[bool, bool]:
    """Whether client and server send a stream."""
    if hasattr(method, "client_streaming"):
        return method.client_streaming, method.server_streaming
    # protobuf 4.21 has it in the descriptor's message only, whose module costs a process half a megabyte.
    from google.protobuf.descriptor_pb2 import MethodDescriptorProto

    proto = MethodDescriptorProto()
    method.CopyToProto(proto)
    return proto.client_streaming, proto.server_streaming


def _message_class(descriptor: Descriptor) -> type[Message]:
    get = getattr(message_factory, "GetMessageClass", None)
    if get is None:
        # protobuf 4.21. Not `message_factory.MessageFactory`: on Debian's C++ build that makes another class than that
        # of the generated modules.
        symbols: Any = symbol_database.Default()
        get = symbols.GetPrototype
    found: type[Message] = get(descriptor)
    return found
