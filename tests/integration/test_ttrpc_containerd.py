"""kata.ttrpc against the Go implementation: containerd's event service, seen through `ctr events`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from kata.protocols.containerd import events_pb2, events_service_pb2
from kata.ttrpc import Client, Code, MessageTooLarge, StatusError, frames
from kata.ttrpc.typed import Stub
from tests.support.containerd import PrivateContainerd

pytestmark = pytest.mark.containerd

SERVICE = events_service_pb2.DESCRIPTOR.services_by_name["Events"]


@pytest.fixture(scope="module")
def containerd() -> Iterator[PrivateContainerd]:
    with PrivateContainerd() as containerd:
        yield containerd


@asynccontextmanager
async def lines_of(command: list[str]) -> AsyncIterator[asyncio.StreamReader]:
    """What a child writes; it is gone when the block is left."""
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield process.stdout
    finally:
        process.kill()
        await process.wait()


def envelope(topic: str, container_id: str) -> events_service_pb2.Envelope:
    event = Any(type_url="containerd.events.TaskOOM")
    event.value = events_pb2.TaskOOM(container_id=container_id).SerializeToString()
    timestamp = Timestamp()
    timestamp.GetCurrentTime()
    return events_service_pb2.Envelope(timestamp=timestamp, namespace="default", topic=topic, event=event)


async def test_published_event_is_seen_by_ctr(containerd: PrivateContainerd) -> None:
    async with (
        lines_of(containerd.ctr_command("events")) as output,
        await Client.connect_unix(str(containerd.ttrpc_address)) as client,
    ):
        events = Stub(client, SERVICE)
        request = events_service_pb2.ForwardRequest(envelope=envelope("/tasks/oom", "ünïcode"))
        line = asyncio.ensure_future(output.readline())
        async with asyncio.timeout(30):
            while not line.done():  # ctr does not say when it has subscribed
                assert await events.Forward(request, timeout=5) == Empty()
                await asyncio.wait([line], timeout=0.1)
        namespace, topic, text = (await line).decode().rsplit(" ", 3)[-3:]
        assert (namespace, topic) == ("default", "/tasks/oom")
        assert json.loads(text) == {"container_id": "ünïcode"}


async def test_gos_errors_limits_and_concurrency(containerd: PrivateContainerd) -> None:
    async with await Client.connect_unix(str(containerd.ttrpc_address)) as client:
        events = Stub(client, SERVICE)
        with pytest.raises(StatusError) as caught:
            await events.Forward(events_service_pb2.ForwardRequest(envelope=envelope("no slash", "x")), timeout=5)
        assert (caught.value.code, "topic" in caught.value.message) == (Code.INVALID_ARGUMENT, True)
        for service, method in (("nope", "Nope"), (SERVICE.full_name, "Nope")):
            with pytest.raises(StatusError) as caught:
                await client.call(service, method, timeout=5)
            assert caught.value.code == Code.UNIMPLEMENTED

        request = events_service_pb2.ForwardRequest(envelope=envelope("/tasks/oom", "x" * 3_000_000))
        assert await events.Forward(request, timeout=10) == Empty()
        with pytest.raises(MessageTooLarge):
            await client.call(SERVICE.full_name, "Forward", bytes(frames.MAX_MESSAGE))

        small = events_service_pb2.ForwardRequest(envelope=envelope("/tasks/oom", "x"))
        answers = await asyncio.gather(*(events.Forward(small, timeout=20) for _ in range(500)))
        assert answers == [Empty()] * 500


async def test_gos_server_refuses_what_is_too_large_and_goes_on(containerd: PrivateContainerd) -> None:
    """What `kata.ttrpc.Server` does as well."""
    reader, writer = await asyncio.open_unix_connection(str(containerd.ttrpc_address))
    client = Client(reader, writer, max_message=8 << 20)
    with pytest.raises(StatusError) as caught:
        await client.call(SERVICE.full_name, "Forward", bytes(5 << 20), timeout=10)
    assert caught.value.code == Code.RESOURCE_EXHAUSTED
    small = events_service_pb2.ForwardRequest(envelope=envelope("/tasks/oom", "x"))
    assert await Stub(client, SERVICE).Forward(small, timeout=5) == Empty()
    await client.close()
