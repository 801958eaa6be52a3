"""The port on a raw pseudo-terminal, which polls and ends much like one; the driver itself is tested in a guest."""

from __future__ import annotations

import asyncio
import os
import tty
from collections.abc import Iterator

import pytest

from kata.agent import virtio_serial
from kata.agent.virtio_serial import VirtioSerialPort, find_port
from kata.errors import NotFound
from kata.ttrpc.frames import REQUEST, encode
from tests.support.waiting import eventually_async


def frame(stream: int, payload: bytes) -> bytes:
    return encode(stream, REQUEST, 0, (payload,))


@pytest.fixture
def pair() -> Iterator[tuple[int, str]]:
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    yield master, os.ttyname(slave)
    os.close(slave)
    os.close(master)


async def read_until(fd: int, size: int) -> bytes:
    data = b""
    async with asyncio.timeout(60):
        while len(data) < size:
            try:
                data += os.read(fd, 65536)
            except BlockingIOError:
                await asyncio.sleep(0.005)
    return data


async def test_echo_and_a_host_that_came_back_unnoticed(pair: tuple[int, str]) -> None:
    host, path = pair
    ended: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        total = 0
        while data := await reader.read(1000):
            total += len(data)
            writer.write(data)
            await writer.drain()
        ended.append(total)

    port = VirtioSerialPort(path, serve)
    try:
        first = frame(1, b"hello") + frame(3, b"")
        os.write(host, first)
        assert await read_until(host, len(first)) == first
        second = frame(1, b"again")
        os.write(host, second)
        assert await read_until(host, len(second)) == second
        await eventually_async(lambda: ended, "the first connection ends", lambda ended: ended == [len(first)])
    finally:
        port.close()
        port.close()
    await asyncio.sleep(0)
    assert ended == [len(first)] or ended == [len(first), len(second)]


async def test_much_output_waits_for_a_slow_host(pair: tuple[int, str]) -> None:
    host, path = pair
    data = os.urandom(3 << 20)
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        for start in range(0, len(data), 1 << 18):
            writer.write(data[start : start + (1 << 18)])
            await writer.drain()
        done.set()
        await reader.read()

    port = VirtioSerialPort(path, serve)
    try:
        os.write(host, frame(1, b""))
        await asyncio.sleep(0.1)
        assert not done.is_set()
        assert await read_until(host, len(data)) == data
        assert done.is_set()
    finally:
        port.close()


async def test_input_after_an_end_by_the_guest_is_thrown_away_until_silence(
    pair: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtio_serial, "_SILENCE_S", 0.5)
    host, path = pair
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(1000))

    port = VirtioSerialPort(path, serve)
    try:
        os.write(host, frame(1, b"a"))
        await eventually_async(lambda: seen, "the end by the guest")
        os.write(host, frame(3, b"late"))

        def begin_again() -> list[bytes]:
            os.write(host, frame(1, b"b"))
            return seen

        # After less than the silence it is thrown away as well, and on a busy host that may be so after more.
        await asyncio.sleep(0.7)
        await eventually_async(begin_again, "the next beginning", lambda seen: len(seen) > 1, poll_s=1.0)
        assert seen[:2] == [frame(1, b"a"), frame(1, b"b")]
    finally:
        port.close()


class Counting(VirtioSerialPort):
    """A port that counts how often it looks for input."""

    looks = 0

    def _receive(self) -> bytes:
        self.looks += 1
        return super()._receive()


async def test_a_busy_loop_is_not_made_of_an_idle_port(pair: tuple[int, str]) -> None:
    _, path = pair

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    port = Counting(path, serve)
    try:
        await asyncio.sleep(0.5)
        assert port.looks < 10
    finally:
        port.close()


class Unannounced(VirtioSerialPort):
    """A port whose driver does not know of the host yet when its first bytes are there; stands in for the driver.

    A terminal has no such state. `announced` is the news.
    """

    announced = False

    def _receive(self) -> bytes:
        try:
            return super()._receive()
        except BlockingIOError:
            if self.announced:
                raise
            return b""


async def test_a_host_that_speaks_before_the_driver_knows_of_it_is_heard(pair: tuple[int, str]) -> None:
    host, path = pair
    ended: list[bool] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for _ in range(3):
                header = await reader.readexactly(10)
                await asyncio.sleep(0.02)
                writer.write(header + await reader.readexactly(int.from_bytes(header[:4])))
            await reader.read()
        finally:
            ended.append(True)

    port = Unannounced(path, serve)
    try:
        early = frame(1, b"knock") + frame(3, b"seed")
        os.write(host, early)
        await asyncio.sleep(0.01)
        port.announced = True
        late = frame(5, b"clock")
        os.write(host, late)
        assert await read_until(host, len(early + late)) == early + late
        assert not ended
        # It leaves, which is the end of what it has begun.
        port.announced = False
        port.pump()
        await eventually_async(lambda: ended, "the end of what it has begun")
    finally:
        port.close()


async def test_what_an_unannounced_host_has_begun_ends_with_the_next_one(pair: tuple[int, str]) -> None:
    host, path = pair
    begun: list[bytes] = []
    ended: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.append(await reader.readexactly(len(first)))
        ended.append(await reader.read(-1))

    first = frame(1, b"was here")
    port = Unannounced(path, serve)
    try:
        os.write(host, first)
        await eventually_async(lambda: begun, "the first one's frame")
        assert not ended
        os.write(host, frame(1, b"is here"))
        await eventually_async(lambda: ended, "the end of what was begun")
        assert (begun, ended) == ([first], [b""])
    finally:
        port.close()


def test_a_port_that_does_not_exist() -> None:
    with pytest.raises(NotFound, match=r"virtio-serial port kata\.none not found"):
        find_port("kata.none", 0)
