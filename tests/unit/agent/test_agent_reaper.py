"""The reaper with real children. While it runs, nothing else in the test process may wait for one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kata.agent.reaper import Reaper, exit_code
from kata.errors import DeadlineExceeded
from tests.support.waiting import eventually_async


@pytest.fixture
async def reaper() -> AsyncIterator[Reaper]:
    reaper = Reaper()
    reaper.start()
    yield reaper
    reaper.stop()


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 9", 9), ("kill -KILL $$", 137), ("kill -TERM $$", 143)]
)
async def test_exit_codes(reaper: Reaper, script: str, code: int) -> None:
    assert (await reaper.run(sh(script), timeout=10)).status == code


@pytest.mark.parametrize(("fixed", "persona"), [(False, "00000000"), (True, "00040000")])
async def test_programs_have_fixed_addresses_if_that_is_wanted(fixed: bool, persona: str) -> None:
    reaper = Reaper(fixed_addresses=fixed)
    reaper.start()
    try:
        done = await reaper.run(sh("cat /proc/self/personality"), timeout=10)
    finally:
        reaper.stop()
    assert done.output.strip() == persona
    assert Path("/proc/self/personality").read_text().strip() == "00000000", "our own is as it was"


def test_wait_statuses() -> None:
    assert exit_code(0x0300) == 3
    assert exit_code(9) == 137


async def test_output_is_caught_and_bounded(reaper: Reaper) -> None:
    result = await reaper.run(sh("echo out; echo err >&2; head -c 1000000 /dev/zero"), timeout=10)
    assert result.output.startswith("out\nerr\n")
    assert len(result.output) == 64 * 1024


async def test_a_child_in_the_background_does_not_hold_up_the_result(reaper: Reaper) -> None:
    result = await reaper.run(sh("sleep 1000 & echo $!"), timeout=60)
    os.kill(int(result.output), signal.SIGKILL)


async def test_the_deadline_kills_the_whole_group(reaper: Reaper) -> None:
    script = "sleep 1000 & echo $!; wait"
    read_end, write_end = os.pipe()
    pid, exited = reaper.spawn(sh(script), stdout=write_end)
    os.close(write_end)
    with pytest.raises(DeadlineExceeded, match=r"sh did not finish within 0\.2 s"):
        await reaper.finish(pid, exited, "sh", 0.2)
    # End of file: nobody holds the other end any more.
    child, end = await asyncio.to_thread(lambda: (os.read(read_end, 100), os.read(read_end, 100)))
    os.close(read_end)
    assert child
    assert end == b""


async def test_a_cancelled_run_kills_its_child(reaper: Reaper) -> None:
    def sleeping() -> bool:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return b"sleep\0001000\0" in [Path(f"/proc/{child}/cmdline").read_bytes() for child in children]

    task = asyncio.create_task(reaper.run(["sleep", "1000"], timeout=1000))
    await eventually_async(sleeping, "the child")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not sleeping()


async def test_an_exit_before_anybody_watches_is_kept_while_adopting(reaper: Reaper) -> None:
    with reaper.adopting():
        pid = os.posix_spawnp("sh", sh("exit 5"), {})
        await eventually_async(lambda: not Path(f"/proc/{pid}").exists(), "the child is reaped")
        assert await asyncio.wait_for(reaper.watch(pid), 30) == 5
        stranger = os.posix_spawnp("sh", sh("exit 6"), {})
        await eventually_async(lambda: not Path(f"/proc/{stranger}").exists(), "the stranger is reaped")
    late = reaper.watch(stranger)
    await asyncio.sleep(0)
    assert not late.done()


async def test_children_start_with_default_signals_and_no_descriptors(reaper: Reaper) -> None:
    read_end, write_end = os.pipe()
    try:
        result = await reaper.run(sh("grep SigIgn /proc/self/status; echo /proc/$$/fd/*"), timeout=10)
    finally:
        os.close(read_end)
        os.close(write_end)
    ignored, descriptors = result.output.splitlines()
    mask = int(ignored.split()[1], 16)
    assert not [number for number in (signal.SIGPIPE, signal.SIGXFSZ) if mask >> (number - 1) & 1]
    open_there = {int(path.rpartition("/")[2]) for path in descriptors.split()}
    assert {0, 1, 2} <= open_there
    assert not {read_end, write_end} & open_there


async def test_a_program_that_does_not_exist(reaper: Reaper) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        await reaper.run(["/no/such/program"], timeout=5)
    assert len(os.listdir("/proc/self/fd")) == before
