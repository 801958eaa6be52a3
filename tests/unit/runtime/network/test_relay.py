"""Moving a process's streams: in order, complete, and never far ahead of who takes them."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os

import pytest

from kata.errors import Unavailable
from kata.runtime.sandbox import stdio as module
from kata.runtime.sandbox.stdio import PIECE, FdSink, FdSource, OutputRelay, widen
from tests.support.waiting import eventually_async


class Output:
    """What the guest answers: numbered pieces, then the end or an error."""

    def __init__(self, pieces: int, error: Exception | None = None) -> None:
        self.asked = 0
        self._pieces = pieces
        self._error = error

    async def read(self) -> bytes:
        self.asked += 1
        number = self.asked
        await asyncio.sleep(0)
        if number <= self._pieces:
            return b"%d " % number
        if self._error:
            raise self._error
        return b""


class Consumer:
    """A sink that takes a piece each time it is allowed to."""

    def __init__(self) -> None:
        self.taken = b""
        self.finished = False
        self.allowed = asyncio.Semaphore(0)

    async def write(self, data: bytes) -> None:
        await self.allowed.acquire()
        self.taken += data

    async def finish(self) -> None:
        self.finished = True

    def close(self) -> None:
        pass


async def test_output_is_complete_and_in_order() -> None:
    output, consumer = Output(5), Consumer()
    for _ in range(5):
        consumer.allowed.release()
    moved: list[int] = []
    await OutputRelay(output.read, consumer, lambda: moved.append(len(consumer.taken))).run()
    assert consumer.taken == b"1 2 3 4 5 "
    assert consumer.finished
    assert moved == [2, 4, 6, 8, 10]


async def test_a_consumer_that_stops_is_not_far_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_AHEAD", 5)
    output, consumer = Output(100), Consumer()
    relay = asyncio.create_task(OutputRelay(output.read, consumer).run())
    await eventually_async(lambda: output.asked, "three pieces are asked for", lambda asked: asked == 3)
    await asyncio.sleep(0.02)
    assert output.asked == 3, "six bytes wait"
    consumer.allowed.release()
    await eventually_async(lambda: output.asked, "the next piece is asked for", lambda asked: asked == 4)
    await asyncio.sleep(0.02)
    assert (output.asked, consumer.taken) == (4, b"1 ")
    relay.cancel()
    with pytest.raises(asyncio.CancelledError):
        await relay
    assert not consumer.finished


async def test_what_came_before_an_error_is_delivered() -> None:
    output, consumer = Output(2, Unavailable("gone")), Consumer()
    relay = asyncio.create_task(OutputRelay(output.read, consumer).run())
    await eventually_async(lambda: output.asked, "the error is read", lambda asked: asked == 3)
    consumer.allowed.release()
    consumer.allowed.release()
    with pytest.raises(Unavailable):
        await relay
    assert consumer.taken == b"1 2 "


async def test_an_error_behind_a_consumer_that_is_given_up_is_no_loose_end(caplog: pytest.LogCaptureFixture) -> None:
    output = Output(1, Unavailable("gone"))
    relay = asyncio.create_task(OutputRelay(output.read, Consumer()).run())
    await eventually_async(lambda: output.asked, "the error is read", lambda asked: asked == 2)
    await asyncio.sleep(0.02)
    relay.cancel()
    with pytest.raises(asyncio.CancelledError):
        await relay
    gc.collect()
    assert not caplog.records


async def test_output_nobody_wants_is_read_to_its_end() -> None:
    output = Output(3)
    await OutputRelay(output.read, None).run()
    assert output.asked == 4


async def test_what_has_been_taken_can_be_waited_for() -> None:
    output, consumer = Output(2), Consumer()
    relay = OutputRelay(output.read, consumer)
    running = asyncio.create_task(relay.run())
    await eventually_async(lambda: relay.received, "two pieces", lambda received: received == 4)
    taken = asyncio.create_task(relay.all_taken())
    consumer.allowed.release()
    await eventually_async(lambda: relay.taken, "the first piece is taken", lambda count: count == 2)
    assert not taken.done()
    consumer.allowed.release()
    await asyncio.wait_for(taken, 60)
    await asyncio.wait_for(relay.all_taken(), 60)
    await running


async def test_a_consumer_is_given_as_much_as_its_pipe_holds() -> None:
    """What a pipe holds is lost if its reader leaves, so it holds no more than the engine has made it for."""
    reading, writing = os.pipe()
    size = fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)
    sink = FdSink(writing)
    assert fcntl.fcntl(reading, fcntl.F_GETPIPE_SZ) == size
    sink.close()
    os.close(reading)


async def test_input_comes_in_whole_pieces() -> None:
    reading, writing = os.pipe()
    source = FdSource(reading)
    try:
        data = os.urandom(PIECE)
        assert os.write(writing, data) == PIECE
        assert await asyncio.wait_for(source.read(), 60) == data
    finally:
        source.close()
        os.close(writing)


def test_only_pipes_are_widened() -> None:
    with open(os.devnull, "rb") as file:
        widen(file.fileno())
    reading, writing = os.pipe()
    try:
        widen(reading)
        assert fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ) == PIECE
    finally:
        os.close(reading)
        os.close(writing)
