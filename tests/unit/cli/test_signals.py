from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from kata.cli.signals import FORWARDED, Interrupted, Signals, ignore


@pytest.fixture(autouse=True)
def _given_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (*FORWARDED, signal.SIGWINCH)}
    for number in before:
        # Whoever runs the tests may have some ignored, as a shell does for a job in the background.
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_until_somebody_is_in_charge_a_signal_interrupts() -> None:
    Signals()
    with pytest.raises(Interrupted) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.number == signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGWINCH])
def test_what_ends_nothing_interrupts_nothing(number: signal.Signals) -> None:
    Signals()
    os.kill(os.getpid(), number)


def test_whoever_is_in_charge_is_told() -> None:
    signals = Signals()
    told: list[int] = []
    signals.deliver_to(told.append)
    for number in FORWARDED:
        os.kill(os.getpid(), number)
    signals.deliver_to(ignore)
    os.kill(os.getpid(), signal.SIGTERM)
    assert told == list(FORWARDED)


async def test_one_that_another_thread_gets_wakes_the_loop() -> None:
    """It is also how one is told that comes just before the loop sleeps."""
    loop = asyncio.get_running_loop()
    signals = Signals()
    before = signal.set_wakeup_fd(-1)
    told: asyncio.Future[int] = loop.create_future()
    signals.deliver_in(loop, told.set_result)

    def kill_oneself() -> None:
        time.sleep(0.2)  # for the loop to sleep; a moment too early is no failure
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    thread = threading.Thread(target=kill_oneself)
    thread.start()
    began = loop.time()
    try:
        # The deadline wakes the loop as well, and is no failure by itself then.
        assert await asyncio.wait_for(told, 60) == signal.SIGTERM
        assert loop.time() - began < 50
    finally:
        signals.deliver_to(ignore)
        thread.join()
    assert signal.set_wakeup_fd(before) == -1


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    Signals()
    os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
