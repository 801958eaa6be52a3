"""Logs of a hostile guest: bounded on disk, harmless on a terminal."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from kata.runtime.hypervisor.console import Pump, RingFile, printable


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


@pytest.mark.parametrize("chunk", [1, 7, 100, 333, 5000])
def test_a_ring_keeps_the_end_and_never_more_than_its_limit(tmp_path: Path, chunk: int) -> None:
    ring = RingFile(tmp_path / "log", limit=200)
    everything = b"".join(b"%05d\n" % number for number in range(1500))
    for start in range(0, len(everything), chunk):
        ring.write(everything[start : start + chunk])
        assert size(tmp_path) <= 200
    ring.close()
    kept = b"".join(path.read_bytes() for path in (tmp_path / "log.1", tmp_path / "log"))
    assert everything.endswith(kept)
    assert len(kept) >= 100


def test_tail_gives_whole_last_lines_across_both_files(tmp_path: Path) -> None:
    ring = RingFile(tmp_path / "log", limit=60)
    for number in range(20):
        ring.write(b"line %02d\n" % number)
    assert ring.tail(3) == "line 17\nline 18\nline 19"
    ring.close()
    assert ring.tail(1) == "line 19"


def test_tail_cuts_long_lines_and_skips_empty_ones(tmp_path: Path) -> None:
    ring = RingFile(tmp_path / "log")
    ring.write(b"x" * 100_000 + b"\n\n  \nend")
    ring.close()
    first, last = ring.tail().split("\n")
    assert set(first) == {"x"}
    assert len(first) <= 500
    assert last == "end"


def test_tail_of_nothing_is_empty(tmp_path: Path) -> None:
    ring = RingFile(tmp_path / "log")
    ring.close()
    assert ring.tail() == ""


def test_an_old_log_does_not_show_in_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"old\n")
    (tmp_path / "log.1").write_bytes(b"older\n")
    ring = RingFile(tmp_path / "log")
    ring.write(b"new\n")
    ring.close()
    assert ring.tail() == "new"


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "log").symlink_to("target")
    with pytest.raises(OSError, match="symbolic"):
        RingFile(tmp_path / "log")


def test_a_full_disk_does_not_stop_the_guest() -> None:
    ring = RingFile(Path("/dev/full"))
    ring.write(b"lost\n")
    ring.close()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[1;1Hhome", "home"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]52;c;c2VjcmV0\x1b\\text", "text"),
        ("\x1bPq#0\x1b\\text", "text"),
        ("\x1bctext", "text"),
        ("\x9b31mtext", "31mtext"),
        ("a\rb\x08\x07\x00c", "abc"),
        ("safe\u202eevil", "safeevil"),
        ("é€", "é€"),
        ("unfinished\x1b[", "unfinished"),
    ],
)
def test_printable(said: str, shown: str) -> None:
    assert printable(said) == shown


async def test_a_pump_carries_until_the_end_and_closes(tmp_path: Path) -> None:
    ring = RingFile(tmp_path / "log")
    ours, theirs = socket.socketpair()
    pump = Pump(fd := ours.detach(), ring)
    theirs.sendall(b"one\ntwo\n")
    theirs.close()
    await pump.ended(5)
    assert ring.tail() == "one\ntwo"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    pump.close()
    ring.close()


async def test_waiting_for_a_pump_has_an_end(tmp_path: Path) -> None:
    ring = RingFile(tmp_path / "log")
    read_end, write_end = os.pipe()
    pump = Pump(read_end, ring)
    begin = asyncio.get_running_loop().time()
    await pump.ended(0.05)
    assert asyncio.get_running_loop().time() - begin < 2
    pump.close()
    os.close(write_end)
    ring.close()
