"""Events reach a containerd that may be slow, refuse, or be away; requests never wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from google.protobuf import empty_pb2

from kata import ttrpc
from kata.protocols.containerd import events_pb2, events_service_pb2
from kata.shim import events as module
from kata.shim.events import Publisher, pack, timestamp
from kata.ttrpc.typed import handlers
from tests.support.waiting import eventually_async

LIMIT_S = 60


class Containerd:
    """The Events service of a containerd that can be stopped and started, over a real socket."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.envelopes: list[events_service_pb2.Envelope] = []
        self.refuse = False
        self.refused = 0
        self._server: ttrpc.Server | None = None
        self._came = asyncio.Event()

    async def forward(self, request: events_service_pb2.ForwardRequest, ctx: object) -> empty_pb2.Empty:
        if self.refuse:
            self.refused += 1
            raise ttrpc.StatusError(ttrpc.Code.INVALID_ARGUMENT, "no")
        self.envelopes.append(request.envelope)
        self._came.set()
        return empty_pb2.Empty()

    async def start(self) -> None:
        service = events_service_pb2.DESCRIPTOR.services_by_name["Events"]
        self._server = ttrpc.Server(handlers(service, self))
        await self._server.serve_unix(self.path)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.close()
            self._server = None

    async def ids(self, count: int) -> list[str]:
        """The container ids of the first events, when there are so many."""
        async with asyncio.timeout(LIMIT_S):
            while len(self.envelopes) < count:
                self._came.clear()
                await self._came.wait()
        return [events_pb2.TaskStart.FromString(one.event.value).container_id for one in self.envelopes]


@pytest.fixture
async def containerd() -> AsyncIterator[Containerd]:
    with TemporaryDirectory(prefix="ke-", dir="/tmp") as directory:
        containerd = Containerd(f"{directory}/c.ttrpc")
        yield containerd
        await containerd.stop()


@pytest.fixture
async def publisher(containerd: Containerd) -> AsyncIterator[Publisher]:
    publisher = Publisher(f"unix://{containerd.path}", "k8s.io")
    running = asyncio.create_task(publisher.run())
    yield publisher
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await publisher.close(0)


def publish(publisher: Publisher, *ids: str) -> None:
    for container_id in ids:
        publisher.publish(events_pb2.TaskStart(container_id=container_id, pid=7))


def test_an_event_is_packed_under_its_bare_name() -> None:
    """containerd's registry knows no type.googleapis.com/."""
    assert pack(events_pb2.TaskExit(id="x")).type_url == "containerd.events.TaskExit"


def test_timestamps_have_both_parts() -> None:
    assert (timestamp(1_500_000_000_000_000_001).seconds, timestamp(1_500_000_000_000_000_001).nanos) == (
        1_500_000_000,
        1,
    )


async def test_what_arrives(containerd: Containerd, publisher: Publisher) -> None:
    await containerd.start()
    publish(publisher, "a")
    await containerd.ids(1)
    (envelope,) = containerd.envelopes
    assert (envelope.namespace, envelope.topic) == ("k8s.io", "/tasks/start")
    assert envelope.event.type_url == "containerd.events.TaskStart"
    assert envelope.timestamp.seconds > 1_600_000_000


@pytest.mark.parametrize(
    ("event", "topic"),
    [
        (events_pb2.TaskCreate(), "/tasks/create"),
        (events_pb2.TaskExit(), "/tasks/exit"),
        (events_pb2.TaskDelete(), "/tasks/delete"),
        (events_pb2.TaskExecAdded(), "/tasks/exec-added"),
        (events_pb2.TaskExecStarted(), "/tasks/exec-started"),
        (events_pb2.TaskOOM(), "/tasks/oom"),
        (events_pb2.TaskPaused(), "/tasks/paused"),
        (events_pb2.TaskResumed(), "/tasks/resumed"),
    ],
)
async def test_topics(containerd: Containerd, publisher: Publisher, event: events_pb2.TaskExit, topic: str) -> None:
    await containerd.start()
    publisher.publish(event)
    await containerd.ids(1)
    assert containerd.envelopes[0].topic == topic


async def test_order_holds_across_a_restart_of_containerd(containerd: Containerd, publisher: Publisher) -> None:
    """Pitfall: the old connection is dead after a restart; nothing may be lost, doubled or out of order."""
    await containerd.start()
    publish(publisher, "a", "b")
    await containerd.ids(2)
    await containerd.stop()
    publish(publisher, "c", "d")
    await asyncio.sleep(0.1)
    await containerd.start()
    publish(publisher, "e")
    assert await containerd.ids(5) == ["a", "b", "c", "d", "e"]


async def test_a_containerd_that_is_not_there_yet(containerd: Containerd, publisher: Publisher) -> None:
    publish(publisher, "a")
    await asyncio.sleep(0.1)
    await containerd.start()
    assert await containerd.ids(1) == ["a"]


async def test_an_event_that_is_refused_is_not_sent_for_ever(containerd: Containerd, publisher: Publisher) -> None:
    await containerd.start()
    containerd.refuse = True
    publish(publisher, "bad")
    await eventually_async(lambda: containerd.refused, "the refusal")
    containerd.refuse = False
    publish(publisher, "good")
    assert await containerd.ids(1) == ["good"]


async def test_a_containerd_that_hangs_is_connected_to_again(
    containerd: Containerd, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.2)
    connected = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take what comes and say nothing, until the other side has had enough."""
        connected.set()
        await reader.read()
        writer.close()

    silent = await asyncio.start_unix_server(hang, containerd.path)
    publish(publisher, "a")
    await asyncio.wait_for(connected.wait(), LIMIT_S)
    silent.close()
    Path(containerd.path).unlink(missing_ok=True)  # since Python 3.13 asyncio does it
    await containerd.start()
    assert await containerd.ids(1) == ["a"]


async def test_the_newest_events_survive_a_long_absence(
    containerd: Containerd, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_QUEUE", 3)
    publish(publisher, "taken")
    await eventually_async(publisher._queue.empty, "the first one is being sent")
    publish(publisher, "a", "b", "c", "d", "e")
    await containerd.start()
    assert await containerd.ids(4) == ["taken", "c", "d", "e"]


async def test_the_end_gives_what_is_left_a_chance(containerd: Containerd) -> None:
    await containerd.start()
    publisher = Publisher(containerd.path, "n")
    running = asyncio.create_task(publisher.run())
    publish(publisher, "a", "b")
    await publisher.close(LIMIT_S)
    assert await containerd.ids(2) == ["a", "b"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_end_does_not_wait_for_a_containerd_that_is_away(publisher: Publisher) -> None:
    publish(publisher, "a")
    await asyncio.wait_for(publisher.close(0.1), LIMIT_S)


async def test_without_an_address_there_is_nobody_to_tell() -> None:
    publisher = Publisher("", "n")
    publish(publisher, "a")
    await asyncio.wait_for(publisher.close(1000), LIMIT_S)
