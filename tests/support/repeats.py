"""Cases that repeat themselves at random moments: a few rounds for everybody, many for `make test-long`."""

from __future__ import annotations

import os

import pytest

#: Rounds of each such case in `make test-long`.
_LONG = int(os.environ.get("KATA_FAULT_ROUNDS", "20"))
#: Seconds for what a case does besides its rounds.
_BASE_S = 120


def repeated(short: int, *, round_s: float) -> pytest.MarkDecorator:
    """Gives a case its `rounds`: `short` ones, and in a second form, marked `long`, as many as KATA_FAULT_ROUNDS says.

    Args:
        round_s: seconds that a round may take on a busy host.
    """

    def form(name: str, rounds: int, *marks: pytest.MarkDecorator) -> object:
        return pytest.param(rounds, id=name, marks=[pytest.mark.timeout(_BASE_S + round_s * rounds), *marks])

    return pytest.mark.parametrize("rounds", [form("short", short), form("long", _LONG, pytest.mark.long)])
