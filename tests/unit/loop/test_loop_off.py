"""Calls off the loop: it goes on meanwhile, and whoever is cancelled still waits for them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kata.loop.off import off_loop


async def test_result_and_error_are_the_functions() -> None:
    assert await off_loop(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await off_loop(divmod, 7, 0)


async def test_the_loop_goes_on_meanwhile() -> None:
    begun, released = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def block() -> bool:
        loop.call_soon_threadsafe(begun.set)
        return released.wait(60)

    call = asyncio.create_task(off_loop(block))
    await begun.wait()
    released.set()
    assert await call


@pytest.mark.parametrize("fails", [False, True])
async def test_who_is_cancelled_waits_for_the_end(fails: bool) -> None:
    begun, released, ended = asyncio.Event(), threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def block() -> None:
        loop.call_soon_threadsafe(begun.set)
        released.wait(60)
        ended.set()
        if fails:
            raise OSError

    call = asyncio.create_task(off_loop(block))
    await begun.wait()
    for _ in range(2):
        call.cancel()
        await asyncio.sleep(0)
    assert not call.done()
    released.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ended.is_set()
