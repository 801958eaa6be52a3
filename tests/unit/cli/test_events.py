"""`kata events`: from what sandboxes have written down, and from their streams."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.cli import events, events_follow, sandboxes
from kata.cli.main import invoke
from kata.runtime.sandbox.event_log import EventLog
from kata.runtime.sandbox.events import Event, Events, Happening


def happening(number: int) -> Event:
    return Event(Happening.CONTAINER_STARTED, f"c{number}", {"exit_status": number}, time=1000.0 + number)


def test_what_is_written_down_is_read(tmp_path: Path) -> None:
    happenings, log = Events(), EventLog(str(tmp_path))
    happenings.listen(log.write)
    for number in range(2000):
        happenings.tell(happening(number))
    log.close()
    found = events.kept(tmp_path)
    assert 300 < len(found) < 2000, "the end is kept"
    assert (found[-1].type, found[-1].container, found[-1].time) == ("container-started", "c1999", 2999.0)
    assert [event.time for event in found] == [float(3000 - len(found) + n) for n in range(len(found))]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 64 << 10


def test_a_log_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path / "none"))
    log.write(happening(1))
    log.close()
    assert events.kept(tmp_path / "none") == []


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, numbers in (("a", (1, 4)), ("b", (2, 3))):
        (tmp_path / name).mkdir()
        log = EventLog(str(tmp_path / name))
        for number in numbers:
            log.write(happening(number))
        log.close()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    there = sandboxes.directories
    monkeypatch.setattr(sandboxes, "directories", lambda: there(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("two")
def test_the_past_of_all_in_the_order_of_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["events"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["a", "b", "b", "a"]
    assert lines[0] == "1970-01-01T00:16:41.000Z  a  container-started   c1 exit_status=1"
    assert invoke(["events", "--json", "--since", "1970-01-01T00:16:43Z"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found[0] == {
        "time": 1003.0,
        "sandbox": "b",
        "type": "container-started",
        "container": "c3",
        "detail": {"exit_status": 3},
    }


@given(st.one_of(st.text(max_size=40), st.binary(max_size=40)))
def test_what_is_no_event(text: str | bytes) -> None:
    assert events.parse_event("box", text) is None


def test_a_hostile_event_is_one_line() -> None:
    event = events.parse_event(
        "box", json.dumps({"type": "\x1b[2J\n", "container": "x\ny", "time": 1, "detail": {"a": "\r"}})
    )
    assert event is not None
    assert event.line.isprintable()


async def test_pieces_of_a_stream() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        text = b":\n\n" + b"".join(
            b"data: " + json.dumps({"type": "oom", "container": f"c{n}", "time": n, "detail": {}}).encode() + b"\n\n"
            for n in range(3)
        )
        for begin in range(0, len(text), 7):
            yield text[begin : begin + 7]
        yield b"data: " + b"x" * 100_000

    assert [event.container async for event in events_follow.told("box", pieces())] == ["c0", "c1", "c2"]


async def test_following_tells_past_and_present_once(
    two: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import asynccontextmanager

    from kata.errors import NotFound

    queue: asyncio.Queue[bytes] = asyncio.Queue()

    @asynccontextmanager
    async def stream(directory: Path, path: str, *, timeout: float) -> AsyncIterator[AsyncIterator[bytes]]:
        if directory.name != "a":
            raise NotFound("not running")

        async def pieces() -> AsyncIterator[bytes]:
            while piece := await queue.get():
                yield piece

        yield pieces()

    def data(number: int) -> bytes:
        return (
            b"data: "
            + json.dumps({"type": "oom", "container": f"c{number}", "time": 1000.0 + number, "detail": {}}).encode()
            + b"\n\n"
        )

    monkeypatch.setattr(events_follow, "stream", stream)
    monkeypatch.setattr(events_follow, "_LOOK_INTERVAL_S", 0.02)
    following = asyncio.create_task(events_follow.follow(frozenset({"a"}), 1002.0, as_json=False))
    queue.put_nowait(data(5) + data(5))
    queue.put_nowait(data(6))
    queue.put_nowait(b"")
    seen = ""
    async with asyncio.timeout(30):
        while seen.count("\n") < 3:
            await asyncio.sleep(0.01)
            seen += capsys.readouterr().out
        for path in (two / "a").iterdir():
            path.unlink()
        (two / "a").rmdir()
        queue.put_nowait(b"")
        await following
    assert [line.split()[3] for line in seen.splitlines()] == ["c4", "c5", "c6"]
