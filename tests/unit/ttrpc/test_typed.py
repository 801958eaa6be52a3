"""Protobuf services: stub and handlers, all four kinds of RPC, and messages that are none."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from kata.ttrpc import CallContext, Code, StatusError
from kata.ttrpc.typed import Stub, handlers, snake_case

if TYPE_CHECKING:
    from tests.unit.ttrpc.conftest import Connected


def _service() -> ServiceDescriptor:
    file = descriptor_pb2.FileDescriptorProto(name="kata_test_typed.proto", package="kata.test", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    service = file.service.add(name="Typed")
    text = ".google.protobuf.StringValue"
    for name, client_streams, server_streams in (
        ("GetOOMEvent", False, False),
        ("NotThere", False, False),
        ("Down", False, True),
        ("Up", True, False),
        ("Both", True, True),
    ):
        service.method.add(
            name=name,
            input_type=text,
            output_type=text,
            client_streaming=client_streams,
            server_streaming=server_streams,
        )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    found: ServiceDescriptor = pool.FindServiceByName("kata.test.Typed")
    return found


SERVICE = _service()


class Typed:
    """An implementation; `closed` is set when a server-streaming RPC has been cleaned up."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def get_oom_event(self, request: StringValue, ctx: CallContext) -> Any:
        if request.value == "wrong type":
            return BytesValue()
        return StringValue(value=f"{request.value} {ctx.metadata.get('k', '')} {ctx.timeout}")

    async def down(self, request: StringValue, ctx: CallContext) -> AsyncIterator[StringValue]:
        try:
            for number in range(3):
                yield StringValue(value=f"{request.value}{number}")
            if request.value == "endless":
                await asyncio.sleep(60)
        finally:
            self.closed.set()

    async def up(self, requests: AsyncIterator[StringValue], ctx: CallContext) -> StringValue:
        return StringValue(value="+".join([request.value async for request in requests]))

    async def both(self, requests: AsyncIterator[StringValue], ctx: CallContext) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield StringValue(value=request.value.upper())


async def test_unary(connected: Connected) -> None:
    _, client = await connected(handlers(SERVICE, Typed()))
    stub = Stub(client, SERVICE)
    answer = await stub.GetOOMEvent(StringValue(value="x"), timeout=5, metadata={"k": "v"})
    assert answer == StringValue(value="x v 5.0")
    assert await stub.call("GetOOMEvent", StringValue(value="y")) == StringValue(value="y  None")


async def test_streaming(connected: Connected) -> None:
    _, client = await connected(handlers(SERVICE, Typed()))
    stub = Stub(client, SERVICE)
    async with stub.Down(StringValue(value="d"), timeout=5) as stream:
        assert [message.value async for message in stream] == ["d0", "d1", "d2"]
    async with stub.Down(StringValue()) as stream:  # an empty message is zero bytes
        assert [message.value async for message in stream] == ["0", "1", "2"]
    async with stub.Up(timeout=5) as stream:
        for value in ("a", "", "b"):
            await stream.send(StringValue(value=value))
        assert await stream.result() == StringValue(value="a++b")
    async with stub.Both(timeout=5) as stream:
        for value in ("a", "b"):
            await stream.send(StringValue(value=value))
            assert (await anext(stream)).value == value.upper()
        await stream.close_send()
        assert [message async for message in stream] == []


async def test_generator_is_closed_with_its_connection(connected: Connected) -> None:
    implementation = Typed()
    _, client = await connected(handlers(SERVICE, implementation))
    async with Stub(client, SERVICE).Down(StringValue(value="endless")) as stream:
        assert (await anext(stream)).value == "endless0"
        await client.close()
    await asyncio.wait_for(implementation.closed.wait(), 60)


async def test_only_what_is_implemented_is_served(connected: Connected) -> None:
    served = handlers(SERVICE, Typed())
    assert {method for _, method in served} == {"GetOOMEvent", "Down", "Up", "Both"}
    _, client = await connected(served)
    with pytest.raises(StatusError) as caught:
        await Stub(client, SERVICE).NotThere(StringValue())
    assert caught.value.code == Code.UNIMPLEMENTED


async def test_malformed_requests_are_the_callers_fault(connected: Connected) -> None:
    _, client = await connected(handlers(SERVICE, Typed()))
    with pytest.raises(StatusError, match=r"malformed google\.protobuf\.StringValue") as caught:
        await client.call("kata.test.Typed", "GetOOMEvent", b"\x0a\xff")
    assert caught.value.code == Code.INVALID_ARGUMENT
    for method, client_streams in (("Down", False), ("Up", True), ("Both", True)):
        with pytest.raises(StatusError) as caught:
            async with client.stream(
                "kata.test.Typed", method, b"\x0a\xff", client_streams=client_streams, timeout=5
            ) as stream:
                await stream.receive()
        assert caught.value.code == Code.INVALID_ARGUMENT


async def test_malformed_answers_are_the_servers_fault(connected: Connected) -> None:
    async def garbage(ctx: CallContext, payload: bytes) -> bytes:
        return b"\x0a\xff"

    _, client = await connected({("kata.test.Typed", "GetOOMEvent"): garbage})
    with pytest.raises(StatusError, match="malformed") as caught:
        await Stub(client, SERVICE).GetOOMEvent(StringValue())
    assert caught.value.code == Code.INTERNAL


async def test_messages_of_another_type_are_not_sent(connected: Connected) -> None:
    _, client = await connected(handlers(SERVICE, Typed()))
    stub = Stub(client, SERVICE)
    with pytest.raises(TypeError, match=r"expected a google\.protobuf\.StringValue, got BytesValue"):
        await stub.GetOOMEvent(BytesValue())
    with pytest.raises(StatusError, match=r"expected a google\.protobuf\.StringValue") as caught:
        await stub.GetOOMEvent(StringValue(value="wrong type"))
    assert caught.value.code == Code.INTERNAL


async def test_unknown_rpcs_are_attribute_errors(connected: Connected) -> None:
    _, client = await connected({})
    stub = Stub(client, SERVICE)
    with pytest.raises(AttributeError, match="no RPC 'Nope' in the service"):
        stub.Nope  # noqa: B018
    with pytest.raises(AttributeError):
        stub.call("Nope", StringValue())
    assert isinstance(copy.copy(stub), Stub)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Check", "check"),
        ("CreateContainer", "create_container"),
        ("GetOOMEvent", "get_oom_event"),
        ("AddARPNeighbors", "add_arp_neighbors"),
        ("OnlineCPUMem", "online_cpu_mem"),
        ("SetIPTables", "set_ip_tables"),
        ("TtyWinResize", "tty_win_resize"),
        ("MemAgentMemcgSet", "mem_agent_memcg_set"),
        ("StatsV2Get", "stats_v2_get"),
    ],
)
def test_snake_case(name: str, expected: str) -> None:
    assert snake_case(name) == expected
