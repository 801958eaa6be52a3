"""Streams on real pipes."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from kata.agent.stdio import MAX_READ, Input, Output, Stdio
from kata.errors import DeadlineExceeded, FailedPrecondition, Internal, Unavailable


async def test_data_arrives_as_soon_as_it_is_there_and_the_end_stays() -> None:
    ours, theirs = os.pipe()
    output = Output(ours)
    read = asyncio.create_task(output.read(100))
    await asyncio.sleep(0.01)
    os.write(theirs, b"ab")
    assert await read == b"ab"
    os.write(theirs, b"cdef")
    assert await output.read(3) == b"cde"
    os.close(theirs)
    assert [await output.read(10), await output.read(10), await output.read(10)] == [b"f", b"", b""]


async def test_what_is_in_the_pipe_can_be_waited_for() -> None:
    """Until it has been read, and no longer: others may go on writing."""
    ours, theirs = os.pipe()
    output = Output(ours)
    await output.drained()
    os.write(theirs, b"abcd")
    drained = asyncio.create_task(output.drained())
    await asyncio.sleep(0.01)
    assert await output.read(3) == b"abc"
    os.write(theirs, b"more")
    await asyncio.sleep(0.01)
    assert not drained.done()
    assert await output.read(1) == b"d"
    await asyncio.wait_for(drained, 30)
    output.close()
    os.close(theirs)


async def test_closing_ends_the_wait_for_what_is_in_the_pipe() -> None:
    ours, theirs = os.pipe()
    output = Output(ours)
    os.write(theirs, b"abcd")
    drained = asyncio.create_task(output.drained())
    await asyncio.sleep(0.01)
    output.close()
    await asyncio.wait_for(drained, 30)
    await output.drained()
    os.close(theirs)


async def test_closing_ends_a_read_in_progress_and_a_cancelled_read_loses_nothing() -> None:
    ours, theirs = os.pipe()
    output = Output(ours)
    read = asyncio.create_task(output.read(100))
    await asyncio.sleep(0.01)
    read.cancel()
    os.write(theirs, b"kept")
    assert await output.read(100) == b"kept"
    read = asyncio.create_task(output.read(100))
    await asyncio.sleep(0.01)
    output.close()
    assert await read == b""
    os.close(theirs)


async def test_a_read_is_bounded() -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"x")
    output = Output(ours)
    assert await output.read(1 << 40) == b"x"
    assert MAX_READ < 4 << 20
    output.close()
    os.close(theirs)


async def test_a_write_waits_and_writes_all() -> None:
    theirs, ours = os.pipe()
    stream = Input(ours)
    data = os.urandom(500_000)
    write = asyncio.create_task(stream.write(data))
    await asyncio.sleep(0.05)
    assert not write.done()
    finish = asyncio.create_task(stream.finish())
    with open(theirs, "rb") as file:
        assert await asyncio.to_thread(file.read) == data
    assert await write == len(data)
    await finish


async def test_a_write_to_nobody_fails() -> None:
    theirs, ours = os.pipe()
    stream = Input(ours)
    os.close(theirs)
    with pytest.raises(FailedPrecondition, match="has closed its standard input"):
        await stream.write(b"x")
    stream.close()
    with pytest.raises(FailedPrecondition, match="standard input is closed"):
        await stream.write(b"x")


async def test_closing_ends_a_write_in_progress() -> None:
    theirs, ours = os.pipe()
    stream = Input(ours)
    write = asyncio.create_task(stream.write(bytes(1 << 20)))
    await asyncio.sleep(0.01)
    stream.close()
    with pytest.raises(FailedPrecondition):
        await write
    os.close(theirs)


async def test_pipes_leave_no_descriptor_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    stdio = Stdio.open_pipes(4096)
    assert all(fd is not None for fd in stdio.streams[:3])
    await stdio.handed_over()
    with pytest.raises(Unavailable):
        stdio.resize(1, 1)
    stdio.close()
    stdio.close()
    Stdio.open_pipes().close()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_terminal_comes_through_its_socket(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    path = str(tmp_path / "console")
    stdio = Stdio.open_terminal(path)
    master, slave = os.openpty()
    with socket.socket(socket.AF_UNIX) as sender:
        sender.connect(path)
        socket.send_fds(sender, [b"/dev/ptmx"], [master])
        await stdio.handed_over()
    os.close(master)
    stdio.resize(10, 20)
    assert os.get_terminal_size(slave) == (20, 10)
    assert stdio.stdin
    assert stdio.stdout
    await stdio.close_stdin()
    await stdio.stdin.write(b"x\n")
    assert os.read(slave, 10) == b"x\n"
    os.close(slave)
    assert (await stdio.stdout.read(100)).startswith(b"x")
    assert await stdio.stdout.read(100) == b""
    stdio.close()
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_runtime_that_sends_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "console")
    stdio = Stdio.open_terminal(path)
    with socket.socket(socket.AF_UNIX) as sender:
        sender.connect(path)
        sender.send(b"nothing")
        with pytest.raises(Internal, match="sent no terminal"):
            await stdio.handed_over()
    stdio.close()
    monkeypatch.setattr("kata.agent.stdio._CONSOLE_TIMEOUT_S", 0.05)
    stdio = Stdio.open_terminal(path)
    with pytest.raises(DeadlineExceeded):
        await stdio.handed_over()
    stdio.close()
    assert list(tmp_path.iterdir()) == []
