"""Frames in: whole, in pieces, broken, too large, too slow, and too many."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kata.agent import otlp
from kata.agent.tracing import Span
from kata.errors import AlreadyExists, FailedPrecondition
from kata.protocols.traces import HEADER, MAX_PAYLOAD, frame
from kata.trace_forwarder import receiver as module
from kata.trace_forwarder.receiver import Receiver
from tests.support.otlp import spans_of
from tests.support.waiting import eventually_async


def spans(name: str) -> bytes:
    return otlp.encode(b"T" * 16, [Span(name, b"A" * 8, b"", 1, 2)])


class Served:
    """A receiver that listens."""

    def __init__(self, path: str, frame_timeout_s: float) -> None:
        self.path = path
        self.names: list[str] = []
        self.receiver = Receiver(
            lambda request: self.names.extend(span["name"] for span in spans_of(request.SerializeToString())),
            frame_timeout_s,
        )

    async def send(self, *pieces: bytes) -> asyncio.StreamWriter:
        _, writer = await asyncio.open_unix_connection(self.path)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        return writer

    async def refused(self, number: int) -> None:
        await eventually_async(lambda: self.receiver.refused >= number, "it was refused")

    async def works(self) -> None:
        """Another connection is served."""
        writer = await self.send(frame(spans("still there")))
        await eventually_async(lambda: "still there" in self.names, "another connection is served")
        writer.close()
        await writer.wait_closed()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    served = Served(str(tmp_path / "f_10240"), 0.5)
    await served.receiver.listen_unix(served.path)
    yield served
    await served.receiver.close()
    assert not os.path.lexists(served.path)


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        await writer.wait_closed()
    except OSError:
        pass


async def test_frames_in_pieces_and_several_in_one(served: Served) -> None:
    data = frame(spans("one"))
    first = await served.send(*[data[at : at + 1] for at in range(len(data))])
    second = await served.send(frame(spans("two")) + frame(spans("three")) + frame(spans("four"))[:5])
    await eventually_async(lambda: sorted(served.names) == ["one", "three", "two"], "all have arrived")
    await closed(first)
    await closed(second)


async def test_only_its_owner_may_connect(served: Served) -> None:
    assert stat.S_IMODE(os.stat(served.path).st_mode) == 0o600


@pytest.mark.parametrize("length", [MAX_PAYLOAD + 1, 4 << 30, (1 << 64) - 1])
async def test_a_length_that_is_too_large_ends_the_connection(served: Served, length: int) -> None:
    writer = await served.send(HEADER.pack(length))
    await served.refused(1)
    await served.works()
    await closed(writer)


@pytest.mark.parametrize("cut", [3, 8, 20])
async def test_a_guest_that_dies_within_a_frame(served: Served, cut: int) -> None:
    await closed(await served.send(frame(spans("half"))[:cut]))
    await served.refused(1)
    assert served.names == []
    await served.works()


async def test_one_that_stops_within_a_frame(served: Served) -> None:
    writer = await served.send(frame(spans("slow"))[:20])
    await served.refused(1)
    await served.works()
    await closed(writer)


async def test_one_that_waits_between_frames_is_left_alone(served: Served) -> None:
    writer = await served.send(frame(spans("before")))
    await asyncio.sleep(1.0)
    writer.write(frame(spans("after")))
    await eventually_async(lambda: served.names == ["before", "after"], "both have arrived")
    assert served.receiver.refused == 0
    await closed(writer)


async def test_garbage_in_whole_frames_costs_only_itself_until_it_is_too_much(served: Served) -> None:
    writer = await served.send(frame(b"\xff" * 100), frame(spans("good")))
    await eventually_async(lambda: served.names == ["good"], "the good one has arrived")
    for _ in range(module._MAX_GARBAGE):
        writer.write(frame(b"\xff"))
    await served.refused(module._MAX_GARBAGE)
    await served.works()
    await closed(writer)


async def test_a_flood_does_not_fill_the_log(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "REPORT_S", 1000.0)
    for _ in range(50):
        await closed(await served.send(HEADER.pack(1 << 32)))
    await served.refused(50)
    assert len(caplog.records) == 1
    monkeypatch.setattr(module, "REPORT_S", 0.0)
    await closed(await served.send(HEADER.pack(1 << 32)))
    await served.refused(51)
    assert "and 49 others before it" in caplog.text


async def test_frames_that_are_announced_and_do_not_come_take_a_bounded_part_of_memory(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_ANNOUNCED", 3 * MAX_PAYLOAD)
    served.receiver._frame_timeout_s = 60
    writers = [await served.send(HEADER.pack(MAX_PAYLOAD)) for _ in range(5)]
    await served.refused(2)
    assert served.receiver._announced == 3 * MAX_PAYLOAD
    for writer in writers:
        await closed(writer)
    await eventually_async(lambda: served.receiver._announced == 0, "their part is free again")
    await served.works()


async def test_a_flood_of_connections(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 5)
    writers = [await served.send() for _ in range(20)]
    await served.refused(15)
    for writer in writers:
        await closed(writer)
    await eventually_async(lambda: not served.receiver._tasks, "they have ended")
    await served.works()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.binary(max_size=400))
def test_nothing_that_comes_in_raises(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def feed() -> None:
        ours, theirs = socket.socketpair()
        receiver = Receiver(lambda request: None, 0.05)
        reader, writer = await asyncio.open_connection(sock=ours)
        receiver._accept(reader, writer)
        tasks = list(receiver._tasks)
        theirs.sendall(data)
        theirs.close()
        await asyncio.gather(*tasks)

    caplog.set_level(logging.ERROR)
    asyncio.run(feed())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


class TestSocket:
    async def test_that_a_dead_forwarder_has_left_is_replaced(self, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        served = Served(path, 1)
        await served.receiver.listen_unix(path)
        await served.works()
        await served.receiver.close()

    async def test_that_is_in_use(self, served: Served) -> None:
        with pytest.raises(AlreadyExists, match="another process listens"):
            await Served(served.path, 1).receiver.listen_unix(served.path)
        await served.works()

    async def test_that_is_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("precious")
        with pytest.raises(FailedPrecondition, match="cannot listen on"):
            await Served(str(tmp_path / "file"), 1).receiver.listen_unix(str(tmp_path / "file"))
        assert (tmp_path / "file").read_text() == "precious"

    async def test_whose_directory_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FailedPrecondition, match="no such file"):
            await Served("", 1).receiver.listen_unix(str(tmp_path / "no" / "s"))


async def test_vsock(tmp_path: Path) -> None:
    receiver = Receiver(lambda request: None)
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError:
        pytest.skip("this kernel has no vsock")
    await receiver.listen_vsock(socket.VMADDR_CID_ANY, 20240)
    with pytest.raises(FailedPrecondition, match="cannot listen on vsock port 20240"):
        await receiver.listen_vsock(socket.VMADDR_CID_ANY, 20240)
    await receiver.close()
