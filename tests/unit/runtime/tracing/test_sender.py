"""Frames to a forwarder that is there, away, back, or does not read."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import pytest

from kata.protocols.traces import HEADER
from kata.runtime.tracing import sender as module
from kata.runtime.tracing.sender import Sender, forwarder_socket
from tests.support.waiting import eventually_async


class Forwarder:
    """Listens, and collects the payloads that it gets."""

    def __init__(self, path: Path) -> None:
        self.payloads: list[bytes] = []
        self._path = forwarder_socket(str(path))
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._read, self._path)

    async def end(self) -> None:
        """As if it were killed."""
        assert self._server
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        Path(self._path).unlink(missing_ok=True)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            while True:
                (length,) = HEADER.unpack(await reader.readexactly(8))
                self.payloads.append(await reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError):
            writer.close()


async def test_in_order_and_flushed_at_the_end(tmp_path: Path) -> None:
    forwarder = Forwarder(tmp_path / "f")
    await forwarder.listen()
    sender = Sender(str(tmp_path / "f"))
    for number in range(100):
        sender.send(str(number).encode())
    await sender.close(20)
    await eventually_async(lambda: len(forwarder.payloads) == 100, "all have arrived")
    assert forwarder.payloads == [str(number).encode() for number in range(100)]
    await forwarder.end()


async def test_a_forwarder_that_comes_later_and_one_that_goes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "_MAX_FRAMES", 10)
    first = Forwarder(tmp_path / "f")
    sender = Sender(str(tmp_path / "f"))
    for number in range(25):
        sender.send(str(number).encode())
    await eventually_async(lambda: "spans wait for kata-trace-forwarder" in caplog.text, "it is missed")
    await first.listen()
    await eventually_async(lambda: len(first.payloads) == 10, "those that were kept have arrived")
    assert first.payloads == [str(number).encode() for number in range(15, 25)], "the last ones"
    assert "15 messages were dropped" in caplog.text
    await first.end()
    second = Forwarder(tmp_path / "f")
    await asyncio.sleep(0.1)
    sender.send(b"after the death")
    await second.listen()
    await eventually_async(lambda: b"after the death" in second.payloads, "it reaches the next one")
    await sender.close(20)
    await second.end()


async def test_nobody_is_held_up_by_one_that_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sender = Sender(str(tmp_path / "none"))
    begin = time.monotonic()
    for _ in range(2000):
        sender.send(bytes(10_000))
    assert sender._size <= module._MAX_BYTES
    await sender.close(0.2)
    assert time.monotonic() - begin < 30
    assert "2000 messages with spans were not sent" in caplog.text


async def test_nor_by_one_that_does_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WRITE_TIMEOUT_S", 0.2)

    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.transport.abort()

    ended = asyncio.Event()
    server = await asyncio.start_unix_server(ignore, forwarder_socket(str(tmp_path / "f")), limit=1024)
    sender = Sender(str(tmp_path / "f"))
    for _ in range(30):
        sender.send(bytes(100_000))
    await eventually_async(lambda: sender._is_away, "it is given up")
    await sender.close(0.2)
    ended.set()
    server.close()
    await asyncio.sleep(0.1)
