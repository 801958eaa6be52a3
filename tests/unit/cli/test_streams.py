from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import pty
import socket
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.cli.streams import HostSink, HostSource

DATA = os.urandom(1 << 20) * 3


def nonblocking(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _no_descriptor_leaks() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


async def read_all(source: HostSource) -> bytes:
    pieces = []
    while piece := await source.read():
        pieces.append(piece)
    source.close()
    source.close()
    return b"".join(pieces)


def unexpected(error: OSError) -> None:
    raise AssertionError(error)


def feed(fd: int, data: bytes) -> threading.Thread:
    def work() -> None:
        with open(fd, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


class Collector(threading.Thread):
    """Reads a descriptor to its end, slowly enough at first that the writer has to wait."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self.data = b""
        self.start()

    def run(self) -> None:
        threading.Event().wait(0.05)
        with open(self._fd, "rb") as file:
            self.data = file.read()


async def test_pipe_in() -> None:
    read_end, write_end = os.pipe()
    thread = feed(write_end, DATA)
    ends: list[bool] = []
    assert await read_all(HostSource(read_end, lambda: ends.append(True))) == DATA
    assert ends == [True]
    thread.join()
    assert not nonblocking(read_end)
    os.close(read_end)


async def test_pipe_whose_writer_has_left_already_ends() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"last words")
    os.close(write_end)
    async with asyncio.timeout(60):
        assert await read_all(HostSource(read_end)) == b"last words"
    os.close(read_end)


async def test_pipe_whose_writer_leaves_while_it_is_waited_for_ends() -> None:
    read_end, write_end = os.pipe()
    source = HostSource(read_end)
    reading = asyncio.create_task(source.read())
    await asyncio.sleep(0.05)
    assert not reading.done()
    os.close(write_end)
    async with asyncio.timeout(60):
        assert await reading == b""
    source.close()
    os.close(read_end)


async def test_file_in_starts_where_the_caller_left_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"first" + DATA)
    with path.open("rb", buffering=0) as file:
        assert file.read(5) == b"first"
        assert await read_all(HostSource(file.fileno())) == DATA
        assert not nonblocking(file.fileno())


async def test_socket_in_and_out() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sink = HostSink(theirs.fileno(), unexpected)
        collector = Collector(os.dup(ours.fileno()))
        await sink.write(DATA)
        await sink.finish()
        assert not nonblocking(theirs.fileno())
        theirs.shutdown(socket.SHUT_WR)
        await asyncio.to_thread(collector.join)
        assert collector.data == DATA
        thread = feed(os.dup(ours.fileno()), b"answer")
        thread.join()
        ours.shutdown(socket.SHUT_WR)
        assert await read_all(HostSource(theirs.fileno())) == b"answer"


async def test_pipe_out() -> None:
    read_end, write_end = os.pipe()
    collector = Collector(read_end)
    sink = HostSink(write_end, unexpected)
    await sink.write(DATA)
    assert not sink.ended.is_set()
    await sink.finish()
    assert sink.ended.is_set()
    assert not nonblocking(write_end)
    os.close(write_end)
    await asyncio.to_thread(collector.join)
    assert collector.data == DATA


async def test_file_out_appends_after_the_callers_words(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"first")
        sink = HostSink(file.fileno(), unexpected)
        await sink.write(DATA)
        await sink.finish()
        file.write(b"last")
    assert (tmp_path / "file").read_bytes() == b"first" + DATA + b"last"


async def test_reader_that_leaves_is_told_once_and_the_rest_is_thrown_away() -> None:
    read_end, write_end = os.pipe()
    errors: list[OSError] = []
    sink = HostSink(write_end, errors.append)
    writing = asyncio.create_task(sink.write(DATA))
    await asyncio.sleep(0.05)
    os.close(read_end)
    async with asyncio.timeout(60):
        await writing
        await sink.write(b"more")
        await sink.finish()
    assert [error.errno for error in errors] == [errno.EPIPE]
    os.close(write_end)


async def test_reader_that_has_left_before_the_start_is_told_on_the_first_write() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    errors: list[OSError] = []
    sink = HostSink(write_end, errors.append)
    assert not errors
    await sink.write(b"x")
    assert [error.errno for error in errors] == [errno.EPIPE]
    sink.close()
    os.close(write_end)


async def test_full_disk_is_told() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    errors: list[OSError] = []
    sink = HostSink(fd, errors.append)
    await sink.write(b"x")
    assert [error.errno for error in errors] == [errno.ENOSPC]
    os.close(fd)


async def test_terminal_keeps_blocking_for_the_user() -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    source, sink = HostSource(slave), HostSink(slave, unexpected)
    os.write(master, b"keys")
    async with asyncio.timeout(60):
        assert await source.read() == b"keys"
        await sink.write(b"screen")
    assert os.read(master, 100) == b"screen"
    assert not nonblocking(slave)
    reading = asyncio.create_task(source.read())
    await asyncio.sleep(0.05)
    os.close(master)
    async with asyncio.timeout(60):
        assert await reading == b"", "a hang-up is the end"
    source.close()
    sink.close()
    os.close(slave)


async def test_closed_descriptor_is_an_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    os.close(write_end)
    with pytest.raises(OSError, match="Bad file descriptor"):
        HostSource(read_end)
    with pytest.raises(OSError, match="Bad file descriptor"):
        HostSink(write_end, unexpected)
