from __future__ import annotations

import os
import signal
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


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    Signals()
    os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
