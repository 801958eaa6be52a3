"""The teardown of a sandbox: its order, and that nothing keeps it from its end."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import FILE
from kata.runtime.sandbox.teardown import Teardown, cancel


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "box"))


async def test_newest_first_and_the_ledger_last(ledger: Ledger, tmp_path: Path) -> None:
    teardown = Teardown("sandbox box", ledger)
    (tmp_path / "held").touch()
    ledger.hold(FILE, str(tmp_path / "held"))
    seen: list[str] = []

    async def last() -> None:
        assert (tmp_path / "held").exists()
        seen.append("last")

    teardown.steps.push_async_callback(last)
    teardown.steps.callback(seen.append, "first")
    assert await teardown.run() == []
    assert seen == ["first", "last"]
    assert not (tmp_path / "held").exists()
    assert not os.path.exists(ledger.directory)
    assert await teardown.run() == []
    assert seen == ["first", "last"]


async def test_every_step_runs_though_one_fails(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    teardown = Teardown("sandbox box", ledger)
    seen: list[str] = []

    async def fail() -> None:
        raise RuntimeError("a mistake")

    teardown.steps.callback(seen.append, "below")
    teardown.steps.push_async_callback(fail)
    teardown.steps.callback(seen.append, "above")
    assert await teardown.run() == []
    assert seen == ["above", "below"]
    assert "a mistake" in caplog.text
    assert not os.path.exists(ledger.directory)


async def test_what_cannot_be_given_back_is_told(
    ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.hold(FILE, str(tmp_path))  # a directory cannot be unlinked
    [problem] = await Teardown("sandbox box", ledger).run()
    assert str(tmp_path) in problem
    assert problem in caplog.text


async def test_it_ends_though_its_caller_is_cancelled_and_others_wait_for_it(ledger: Ledger) -> None:
    teardown = Teardown("sandbox box", ledger)
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        entered.set()
        await go_on.wait()

    teardown.steps.push_async_callback(slow)
    first = asyncio.create_task(teardown.run())
    await entered.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    second = asyncio.create_task(teardown.run())
    await asyncio.sleep(0.01)
    assert not second.done()
    go_on.set()
    assert await second == []
    assert not os.path.exists(ledger.directory)


async def test_cancel_waits_for_the_end_of_a_task() -> None:
    ended: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await cancel(task)
    assert ended == [True]
