"""Start slots, in a directory of the test's own: how many there are, how long they last, and those of the dead."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kata.runtime.launch import start_slots
from kata.runtime.launch.start_slots import StartSlot, acquire, try_acquire

MANY = 2 * len(os.sched_getaffinity(0))


def all_of(root: Path) -> list[StartSlot]:
    taken = []
    while slot := try_acquire(str(root)):
        taken.append(slot)
        assert len(taken) <= MANY
    return taken


def test_two_for_each_cpu_and_no_more_until_one_is_released(tmp_path: Path) -> None:
    taken = all_of(tmp_path)
    assert len(taken) == MANY
    taken[1].release()
    taken[1].release()
    again = try_acquire(str(tmp_path))
    assert again is not None
    assert try_acquire(str(tmp_path)) is None
    with again:
        pass
    for slot in taken:
        slot.release()
    rest = all_of(tmp_path)
    assert len(rest) == MANY
    for slot in rest:
        slot.release()


def test_the_slot_of_a_process_that_is_killed_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, time; from kata.runtime.launch.start_slots import try_acquire\n"
        "t = try_acquire(sys.argv[1]); print(1, flush=True); time.sleep(60)"
    )
    holders = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) for _ in range(MANY)
    ]
    for holder in holders:
        assert holder.stdout is not None
        holder.stdout.read(1)
    assert try_acquire(str(tmp_path)) is None
    for holder in holders:
        holder.kill()
        holder.communicate()
    taken = all_of(tmp_path)
    assert len(taken) == MANY
    for slot in taken:
        slot.release()


async def test_who_waits_gets_the_next_one(tmp_path: Path) -> None:
    taken = all_of(tmp_path)
    waiting = asyncio.ensure_future(acquire(str(tmp_path)))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    taken[0].release()
    slot = await asyncio.wait_for(waiting, 60)
    assert try_acquire(str(tmp_path)) is None
    slot.release()
    for slot in taken:
        slot.release()


async def test_who_stops_waiting_has_none(tmp_path: Path) -> None:
    taken = all_of(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    waiting = asyncio.ensure_future(acquire(str(tmp_path)))
    await asyncio.sleep(0.1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert len(os.listdir("/proc/self/fd")) == before
    for slot in taken:
        slot.release()


async def test_who_has_waited_for_long_goes_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_slots, "MAX_WAIT_S", 0.1)
    taken = all_of(tmp_path)
    without = await asyncio.wait_for(acquire(str(tmp_path)), 60)
    without.release()
    assert try_acquire(str(tmp_path)) is None
    for slot in taken:
        slot.release()


async def test_it_is_released_after_a_time_unless_it_is_kept(tmp_path: Path) -> None:
    taken = all_of(tmp_path)
    taken[0].release_in(0.05)
    taken[0].keep()
    await asyncio.sleep(0.1)
    assert try_acquire(str(tmp_path)) is None
    taken[0].release_in(60)
    taken[0].release_in(0.05)
    taken[0] = await asyncio.wait_for(acquire(str(tmp_path)), 60)
    for slot in taken:
        slot.release()


async def test_no_place_for_slots_is_no_reason_not_to_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    slot = await acquire(str(tmp_path / "file"))
    slot.release_in(0.01)
    slot.release()
